"""Strategies of Flower's as users write them, right and wrong ones."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

Trained = tuple[ArrayRecord | None, MetricRecord | None]


class Remembering(FedAvg):
    """Keeps one thing of each kind that a snapshot can hold, and moves half of the way."""

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = share
        self.rounds: dict[int, tuple[str, float]] = {}
        self.path: list[np.ndarray] = []
        self.last: ArrayRecord | None = None
        self.digest = b""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.last = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Trained:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        assert self.last is not None
        half = {
            name: self.last[name].numpy() * (1 - self.share) + array.numpy() * self.share
            for name, array in arrays.items()
        }
        self.rounds[server_round] = ("done", random.random())
        self.path.append(np.concatenate([a.ravel() for a in half.values()]))
        self.digest += bytes([server_round])
        return ArrayRecord({name: Array(array) for name, array in half.items()}), metrics


class Guarding(FedAvg):
    """Has a lock, which no snapshot can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.guard = {"lock": threading.Lock()}


class Demanding(FedAvg):
    """Tells its devices something that takes code of their own."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        config["local-epochs"] = 3
        return super().configure_train(server_round, arrays, config, grid)


class Talking(FedAvg):
    """Sends messages by itself."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        grid.send_and_receive(super().configure_train(server_round, arrays, config, grid))
        return []


class LookingAhead(FedAvg):
    """Sends its devices another model than the one that is published."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        ahead = {name: Array(array.numpy() * 1.1) for name, array in arrays.items()}
        return super().configure_train(server_round, ArrayRecord(ahead), config, grid)


class Misshaping(FedAvg):
    """Gives a model of another shape."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Trained:
        return ArrayRecord({"fc.weight": Array(np.zeros((2, 3), np.float32))}), None


class Dying(FedAvg):
    """Its process dies in a round: once, if it has a place to note that it has; else each time."""

    def __init__(self, note: str = "") -> None:
        super().__init__()
        self.note = note

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Trained:
        if server_round == 2 and not (self.note and Path(self.note).exists()):
            if self.note:
                Path(self.note).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().aggregate_train(server_round, replies)


class Chatting(FedAvg):
    """Prints far more than a pipe holds, by Python and below it."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Trained:
        sys.stdout.write("so it goes " * 20_000)
        sys.stdout.flush()
        os.write(1, b"and so on " * 20_000)
        return super().aggregate_train(server_round, replies)


class Spelling(FedAvg):
    """Gives text in place of numbers."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Trained:
        return ArrayRecord({"fc.weight": Array(np.array(["one", "two"]))}), None


class Counting(FedAvg):
    """Remembers which rounds it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[object]] = []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Trained:
        self.seen.append(["train", server_round])
        return super().aggregate_train(server_round, replies)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        self.seen.append(["evaluate", server_round])
        return super().aggregate_evaluate(server_round, replies)

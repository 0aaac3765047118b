"""Sources as an owner writes them, named as ``tests.agent.streaming:...``."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from fedtiny.data.tasks import SineTask

SAMPLES = [([float(n), 0.0], n % 2) for n in range(10)]
late: list[Any] = [("a", [1.0, 2.0], None), ("b", [3.0, 4.0], 1), ("c", [5.0, 6.0], None)]
released = threading.Event()


def of_device(device: int) -> list[Any]:
    return [([float(device), 1.0], device)] * 3


def endless() -> Iterator[Any]:
    for n in itertools.count():
        yield [float(n), 0.0], n


def sensor() -> Iterator[Any]:
    yield [1.0, 1.0], 1
    released.wait(10)
    yield [2.0, 2.0], 0


def broken() -> Iterator[Any]:
    yield [1.0, 1.0], 1
    raise ValueError("the sensor is gone")


def shapeless() -> list[Any]:
    return [1.0, 2.0]


class Task(SineTask):
    """A task without arguments."""


SMALL = SineTask(support=8, query=4)


class FreezingTask(SineTask):
    """Stops the coordinator once, while the device trains: what is sent then gets no answer."""

    def samples(self, run: int, round: int, device: int, part: str) -> Any:
        coordinator = os.environ.pop("FREEZE", "")
        if round == 1 and coordinator:
            os.kill(int(coordinator), signal.SIGSTOP)
        elif coordinator:
            os.environ["FREEZE"] = coordinator
        return SMALL.samples(run, round, device, part)

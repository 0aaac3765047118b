from __future__ import annotations

import math

import pytest

from fedtiny.device.link import MemoryLink
from fedtiny.device.session import State
from fedtiny.rounds.coordinator import Coordinator
from fedtiny.rounds.journal import MemoryJournal
from fedtiny.rounds.rules import Rules
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.values import ACCEPTED, DUPLICATE
from tests.harness.node import FaultyLink, Node
from tests.harness.toys import INITIAL, LAYOUT, Run


class World:
    """Two devices, a coordinator, and a clock that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0
        strategy = FedAvg(cohort=2, beta=0.1)
        self.coordinator = Coordinator(
            Rules(2, 2, 50.0, 2, seed=7), strategy, LAYOUT, INITIAL, MemoryJournal(), 2
        )
        self.links = [
            FaultyLink(MemoryLink(self.coordinator, device, lambda: self.now)) for device in (0, 1)
        ]
        self.nodes = [Node(7, device, link) for device, link in enumerate(self.links)]

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            for node in self.nodes:
                node.act(self.now)
            self.now += 1.0
            self.coordinator.tick(self.now)


def test_devices_and_coordinator_finish_a_run_over_the_link() -> None:
    world = World()
    world.run(200)
    assert all(node.session.state == State.STOPPED for node in world.nodes)
    assert [receipt.status for receipt in world.nodes[0].receipts] == [ACCEPTED] * 2
    undisturbed = Run(FedAvg(cohort=2, beta=0.1), rounds=2, devices=2).finish()
    assert world.coordinator.model.tobytes() == undisturbed.tobytes()


def test_a_lost_receipt_costs_a_repetition_and_counts_once() -> None:
    world = World()
    world.links[0].handing_in = "answer lost"
    world.run(1)
    assert world.coordinator.rounds.round == 1  # it has arrived, and the round is committed
    assert world.nodes[0].session.state == State.HOLDING
    world.links[0].handing_in = "delivered"
    world.run(199)
    statuses = [receipt.status for receipt in world.nodes[0].receipts]
    assert statuses == [DUPLICATE, ACCEPTED]
    undisturbed = Run(FedAvg(cohort=2, beta=0.1), rounds=2, devices=2).finish()
    assert world.coordinator.model.tobytes() == undisturbed.tobytes()


def test_a_lost_lease_is_given_again() -> None:
    world = World()
    world.links[0].asking = "answer lost"
    world.run(1)
    world.links[0].asking = "delivered"
    world.run(2)
    assert world.nodes[0].sent[0].lease == 0  # and not a second lease of the same round


def test_a_model_that_is_gone_is_like_no_answer() -> None:
    with pytest.raises(ConnectionError, match="version 3 of the model is gone"):
        World().links[0].fetch(3)


def test_a_device_that_has_nothing_to_do_is_told_when_to_ask_again() -> None:
    world = World()
    world.nodes[0].act(0.0)
    answer = world.links[0].check_in()
    assert isinstance(answer, float)
    assert math.isfinite(answer)
    world.links[0].asking = "request lost"
    with pytest.raises(ConnectionError):
        world.links[0].check_in()

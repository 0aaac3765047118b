"""An agent over real gRPC: what it does, what it keeps, what it survives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedtiny.agent.agent import Agent
from fedtiny.agent.limits import Limits
from fedtiny.device.learner import Key, Learner
from fedtiny.errors import IdentityError, OutdatedError
from fedtiny.values import ACCEPTED, DUPLICATE
from tests.agent.small_fleet import PROGRAM, SEED, TASK, Hand, SmallFleet, agent_of, joined, served


@contextmanager
def hand_of(fleet: SmallFleet, folder: Path, **options: Any) -> Iterator[Hand]:
    with served(fleet) as port:
        yield agent_of(joined(folder, fleet, port), **options)


def test_an_agent_trains_what_a_learner_trains(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=3)
    with hand_of(fleet, tmp_path) as hand:
        hand.agent.run()
    # One device, the whole cohort: the model is what its visits leave, one after the other.
    learner, model = Learner(PROGRAM), np.asarray(PROGRAM.initial(SEED))
    instruction = fleet.coordinator.open.instruction
    for t in range(3):
        key = Key(SEED, t, 0)
        samples = lambda part, t=t: learner.samples(*TASK.samples(SEED, t, 0, part))  # noqa: E731
        done = learner.visit(instruction, model, samples, key)
        model = model + (np.frombuffer(done.values, np.float32) - model)
    assert [visit.status for visit in hand.visits] == [ACCEPTED] * 3
    np.testing.assert_allclose(fleet.model, model, atol=1e-6)
    assert hand.notes == ["the run is over"]

"""Agents that prune, over real gRPC: a mask comes once per change, and only what lives travels."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedtiny.agent.personal import Predictor
from fedtiny.device.learner import Learner
from fedtiny.engine.compile import compile
from fedtiny.engine.zoo import mlp
from fedtiny.masks import remembered
from fedtiny.strategies.base import FleetFacts, Strategy
from fedtiny.strategies.feddst import FedDST
from fedtiny.strategies.fedrts import FedRTS
from fedtiny.strategies.fedtiny import FedTiny
from fedtiny.values import ACCEPTED
from fedtiny.wire.pb import fleet_pb2 as pb
from tests.agent.small_fleet import SmallFleet, agent_of, joined, served
from tests.agent.test_agent import hand_of, run_in_a_process, undisturbed

PRUNED = compile(mlp((1, 16, 16, 1)), loss="mse", ram="64KiB", batch=4, density=0.3, bucket=64)
FACTS = FleetFacts(PRUNED.prunable, (0.3,), (), PRUNED.layout, seed=7)
STRATEGIES: dict[str, Strategy] = {
    "fedtiny": FedTiny(cohort=2, beta=0.01, steps=2, every=2, stop=8, candidates=0),
    "fedrts": FedRTS(cohort=2, beta=0.01, steps=2, every=2, stop=8),
    "feddst": FedDST(cohort=2, beta=0.01, steps=2, every=2, stop=8),
}


def pruning(name: str, cohort: int = 2, rounds: int = 8) -> SmallFleet:
    strategy = replace(STRATEGIES[name], cohort=cohort).fitted(FACTS)
    return SmallFleet(strategy, rounds, cohort, PRUNED)


def live_work(fleet: SmallFleet) -> list[tuple[bytes, int]]:
    """Of each fetch its digest, and how many bytes the blob has."""
    fetches = [call for call in fleet.calls if isinstance(call, pb.FetchRequest)]
    return [(call.digest, len(fleet.blobs[call.digest])) for call in fetches]


@pytest.mark.parametrize("name", STRATEGIES)
def test_agents_make_the_model_that_learners_make(tmp_path: Path, name: str) -> None:
    fleet = pruning(name)
    with served(fleet) as port:
        hands = [agent_of(joined(tmp_path / str(d), fleet, port, d)) for d in range(2)]
        threads = [threading.Thread(target=hand.agent.run) for hand in hands]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [[v.status for v in hand.visits] for hand in hands] == [[ACCEPTED] * 8] * 2
    assert fleet.model.tobytes() == undisturbed(fleet)


def test_a_mask_is_fetched_once_per_change(tmp_path: Path) -> None:
    fleet = pruning("fedtiny", cohort=1)
    seen: list[bytes] = []
    fleet.after["check_in"] = fleet.after["submit"] = lambda reply, _: seen.append(
        reply.answer.work.instruction.mask.digest
    )
    with served(fleet) as port:
        store = joined(tmp_path, fleet, port)
        agent_of(store).agent.run(visits=3)
        agent_of(store).agent.run()  # after a loss of power it still has the mask
    masks = list(dict.fromkeys(filter(None, seen)))
    assert 2 <= len(masks) < 8
    fetched = Counter(digest for digest, _ in live_work(fleet))
    assert {fetched[mask] for mask in masks} == {1}


def test_a_visit_carries_what_is_live(tmp_path: Path) -> None:
    fleet = pruning("fedtiny", cohort=1, rounds=1)
    with hand_of(fleet, tmp_path) as hand:
        hand.agent.run()
    mask = remembered(fleet.coordinator.strategy.masks(
        fleet.coordinator.strategy.start(PRUNED.layout, np.asarray(PRUNED.initial(7)))
    )[0][1], PRUNED.layout)  # fmt: skip
    sizes = [size for _, size in live_work(fleet)]
    assert 4 * mask.count in sizes
    assert 4 * PRUNED.layout.size not in sizes
    (submit,) = (call for call in fleet.calls if isinstance(call, pb.SubmitRequest))
    # the size, the name of the mask, and the values: nothing of a bitmap
    assert submit.total == 5 + 10 + 3 + 4 * mask.count


@pytest.mark.parametrize("name", STRATEGIES)
def test_after_a_loss_of_power_the_update_is_sent_as_it_was(tmp_path: Path, name: str) -> None:
    fleet = pruning(name, cohort=1)
    payloads: list[tuple[int, bytes]] = []

    def twice(request: Any, context: grpc.ServicerContext) -> None:
        """The first try of each update is lost, and with it the agent's memory."""
        payloads.append((request.update.lease, request.chunk))
        if len([lease for lease, _ in payloads if lease == request.update.lease]) == 1:
            agents[-1].agent.stop()
            context.abort(grpc.StatusCode.UNAVAILABLE, "the power is gone")

    fleet.faults["submit"] = twice
    agents: list[Any] = []
    with served(fleet) as port:
        store = joined(tmp_path, fleet, port)
        while fleet.coordinator.rounds.phase != "done":
            agents.append(agent_of(store))
            agents[-1].agent.run()
    assert len(payloads) == 2 * 8
    assert payloads[::2] == payloads[1::2]
    assert fleet.model.tobytes() == undisturbed(fleet)


def test_a_device_predicts_by_the_live_weights_that_it_has_trained(tmp_path: Path) -> None:
    fleet = pruning("fedtiny", cohort=1, rounds=2)
    with hand_of(fleet, tmp_path) as hand:
        hand.agent.run(visits=1)
    trained = hand.store.trained()
    assert trained
    mask = remembered(trained.mask, PRUNED.layout)
    assert len(trained.vector) == 4 * mask.count
    learner = Learner(PRUNED)
    learner.load_mask(mask)
    learner.load(trained.vector)
    x = np.linspace(-1, 1, 5, dtype=np.float32).reshape(5, 1)
    expected = np.asarray(learner.predict(x))[:, 0].tolist()
    assert [row["outputs"][0] for row in Predictor(hand.store).predict(x)] == expected
    assert len(set(expected)) == 5


@pytest.mark.parametrize("name", ["fedtiny", "feddst"])
def test_an_agent_without_numpy_prunes_the_same_bits(tmp_path: Path, name: str) -> None:
    fleets = {numpy: pruning(name, cohort=1) for numpy in (False, True)}
    for numpy, fleet in fleets.items():
        run_in_a_process(fleet, tmp_path, numpy)
    without, with_it = fleets.values()
    assert without.coordinator.rounds.phase == "done"
    assert without.model.tobytes() == with_it.model.tobytes()
    sent = [[c.chunk for c in f.calls if isinstance(c, pb.SubmitRequest)] for f in fleets.values()]
    assert sent[0] == sent[1]
    assert len(sent[0]) == 8

"""A simulated run publishes the model of a real one: coordinator, links, sessions and learners."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedtiny.device.learner import Key, Learner
from fedtiny.device.link import MemoryLink
from fedtiny.device.session import Command, Event, Session, advance
from fedtiny.experiment import Experiment
from fedtiny.rounds.coordinator import Coordinator
from fedtiny.rounds.journal import MemoryJournal
from fedtiny.simulator.simulation import Simulation
from fedtiny.values import ACCEPTED, Instruction, Kept, Lease, Receipt, Update
from tests.simulator.experiments import MIXED, PRUNED, SINE

if TYPE_CHECKING:
    from fedtiny.tensors import Float32, Int64


@dataclass
class Diary:
    """What happened to the devices of a simulated run, and the model after each round."""

    happened: list[tuple[str, float, list[int]]] = field(default_factory=list)
    models: list[Float32] = field(default_factory=list)

    def follow(self, simulation: Simulation) -> None:
        """Run it to its end and write down who got a lease and who came back, and when."""
        sessions = simulation.sessions
        instruct, apply = sessions.instruct, sessions.apply

        def instructed(devices: Int64, *rest: Any) -> None:
            self.happened.append(("lease", rest[-1], devices.tolist()))
            instruct(devices, *rest)

        def applied(devices: Int64, event: Event, now: float) -> None:
            if event == Event.FINISHED:
                self.happened.append(("offer", now, devices.tolist()))
            apply(devices, event, now)

        sessions.instruct = instructed  # type: ignore[method-assign,assignment]
        sessions.apply = applied  # type: ignore[method-assign]
        while simulation.step():
            self.models.append(simulation.standing.model.copy())


class Device:
    """A device as an agent will be one: a session, a link, a learner, samples of its own."""

    def __init__(self, simulation: Simulation, service: Coordinator, index: int) -> None:
        self.now, self.simulation = 0.0, simulation
        self.session = Session(simulation.experiment.seed, index)
        self.link = MemoryLink(service, index, lambda: self.now)
        fleet = simulation.fleet
        self.learner = Learner(fleet.profiles[fleet.profile[index]].needed)
        self.command = Command.NONE
        self.kept: Kept = {}

    def happens(self, event: Event, lease: Lease | None = None) -> Command:
        self.session, self.command = advance(self.session, event, self.now, lease)
        return self.command

    def get_lease(self, now: float) -> None:
        self.now = now
        assert self.happens(Event.WAKE) == Command.CHECK_IN
        answer = self.link.check_in()
        assert isinstance(answer, tuple)
        self.lease, self.instruction = answer
        assert self.happens(Event.INSTRUCTED, self.lease) == Command.FETCH
        self.model = self.link.fetch(self.lease.version)
        assert self.happens(Event.FETCHED) == Command.WORK

    def offer(self, now: float) -> Receipt:
        self.now = now
        update = self.work(self.instruction)
        assert self.happens(Event.FINISHED) == Command.SUBMIT
        receipt = self.link.submit(update)
        if receipt.status == ACCEPTED:
            self.kept = {**self.kept, **self.left}
        self.happens(Event.ACCEPTED if receipt.status == ACCEPTED else Event.REFUSED)
        return receipt

    def work(self, instruction: Instruction) -> Update:
        lease, run = self.lease, self.session.run
        task = self.simulation.work.task
        outcome = self.learner.visit(
            instruction,
            self.base(instruction),
            lambda part: self.learner.samples(*task.samples(run, lease.round, lease.device, part)),
            Key(run, lease.round, lease.device),
            self.kept,
        )
        self.left = outcome.kept
        return Update(
            lease.id, lease.device, lease.round, lease.version, outcome.samples, outcome.values,
            outcome.ranges, outcome.measures, outcome.mask, outcome.places,
            outcome.quantised,
        )  # fmt: skip

    def base(self, instruction: Instruction) -> bytes:
        """The model as it travels: under a mask its live values alone."""
        mask = self.simulation.work.mask_of(instruction.of(self.learner.program.density))
        if mask is None:
            return self.model
        return np.frombuffer(self.model, np.float32)[mask.bools].tobytes()


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "tinyreptile", "tinymetafed", "median"])
def test_a_real_run_with_the_same_arrivals_publishes_the_same_models(strategy: str) -> None:
    experiment = Experiment.of(SINE).override(
        f"strategy={{name='{strategy}', beta=0.02, cohort=6}}",
        "fleet.drop_out=0.1",
        "run.over_selection=1.5",
        "run.rounds=4",
        "evaluate={}",
    )
    publishes_the_same(experiment)


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_a_real_fleet_of_two_plans_publishes_the_same_models(strategy: str) -> None:
    publishes_the_same(
        Experiment.of(SINE).override(
            f"strategy={{name='{strategy}', cohort=6, beta=0.02}}",
            "fleet={devices=12, held_out=2, threads=1, profiles={cortex-m4=0.5, pi-4=0.5}}",
            "device.cortex-m4.plan='named:linear2.weight{in=1/4}+biases:1'",
            "device.pi-4.plan='named:linear2.*{out=0-3+30}+last:1'",
            "run.rounds=4",
            "evaluate={}",
        )
    )


@pytest.mark.parametrize(
    "strategy",
    ["{name='fedadam', cohort=6, beta=0.05}", "{name='fedper', cohort=6, beta=0.05}",
     "{name='fedavg', cohort=6, beta=0.05, transforms=['topk:0.2', 'int8']}"],
)  # fmt: skip
def test_a_real_fleet_of_int8_and_float32_publishes_the_same_models(strategy: str) -> None:
    plans = "device.cortex-m4.plan='named:linear1.weight{in=1/2}+biases+last:1'", "evaluate={}"
    publishes_the_same(Experiment.of(MIXED).override(f"strategy={strategy}", *plans))


@pytest.mark.parametrize(
    "strategy",
    ["{name='scaffold', cohort=6, steps=2, beta=0.02}",
     "{name='ditto', cohort=6, beta=0.02, transforms=['feedback', 'topk:0.2', 'int8']}"],
)  # fmt: skip
def test_real_devices_that_keep_things_publish_the_same_models(strategy: str) -> None:
    publishes_the_same(
        Experiment.of(SINE).override(
            f"strategy={strategy}",
            "fleet={devices=12, held_out=2, threads=1}",
            "run.rounds=4",
            "evaluate={}",
        )
    )


@pytest.mark.parametrize("strategy", ["fedtiny", "fedrts", "feddst"])
def test_a_real_fleet_that_prunes_publishes_the_same_models(strategy: str) -> None:
    publishes_the_same(
        Experiment.of(PRUNED).override(
            f"strategy={{name='{strategy}', cohort=5, beta=0.05, every=3, stop=7}}",
            "fleet.devices=30",
            "fleet.drop_out=0.1",
            "run.over_selection=1.5",
            "evaluate={}",
        )
    )


def test_a_real_fleet_that_sums_features_publishes_the_same_model() -> None:
    publishes_the_same(
        Experiment.of(SINE | {"data": {"source": "label-skew-digits"}, "evaluate": {}}).override(
            "model={build='digits_mlp', hidden=8}",
            "strategy={name='fedridge', cohort=6}",
            "fleet={devices=20, held_out=2, threads=1}",
            "run.rounds=2",
        )
    )


def publishes_the_same(experiment: Experiment) -> None:
    """Play what happened in a simulated run to a coordinator, links, sessions and learners."""
    simulation = Simulation(experiment, "columns", lambda row: None)
    diary = Diary()
    diary.follow(simulation)

    initial = Simulation(experiment, "columns", lambda row: None).standing.model
    service = Coordinator(
        simulation.rules, simulation.work.strategy, simulation.layout, initial, MemoryJournal(),
        simulation.fleet.training.size,
    )  # fmt: skip
    fleet: dict[int, Device] = {}
    published: list[Float32] = []
    for what, now, devices in diary.happened:
        for index in devices:
            device = fleet.setdefault(index, Device(simulation, service, index))
            if what == "offer":
                round = service.rounds.round
                device.offer(now)
                if service.rounds.round > round:
                    published.append(service.model.copy())
        if what == "lease":
            for index in devices:
                if fleet[index].command == Command.WORK:  # its last visit was lost
                    fleet[index].happens(Event.EXPIRED)
                fleet[index].get_lease(now)
    assert len(published) == len(diary.models) == experiment.run.rounds
    for real, simulated in zip(published, diary.models, strict=True):
        np.testing.assert_array_equal(real, simulated)

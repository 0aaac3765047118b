"""A conductor without a network: what devices ask, cycle by cycle, on a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedtiny.device.learner import Key, Learner
from fedtiny.engine.program import Program
from fedtiny.experiment import Experiment
from fedtiny.server.authority import Authority
from fedtiny.server.conductor import Conductor
from fedtiny.server.devices import Devices
from fedtiny.server.hosting import Hosted, Offered
from fedtiny.server.inbox import Call, CheckIn, Inbox, Offer, Request
from fedtiny.server.sealing import RoundKeys
from fedtiny.server.storage import Database
from fedtiny.values import DeviceCard, Receipt, Update
from fedtiny.wire import codec
from fedtiny.wire.codec import Answer, Work

CARD = DeviceCard("pi-4", 2**30, 2**30, 1e9, 1e7, 1e7)
EXPERIMENT: Mapping[str, Any] = {
    "seed": 7,
    "seeded": True,
    "model": {"build": "sine_mlp", "arguments": {}},
    "data": {"source": "sine"},
    "strategy": {"name": "fedavg", "cohort": 2, "beta": 0.02},
    "fleet": {"devices": 4, "held_out": 1, "profiles": {"pi-4": 1.0}},
    "run": {"rounds": 3, "deadline": 100.0},
}


def experiment(*settings: str, name: str = "") -> Experiment:
    """The one above with settings; under a name of its own."""
    given = {k: v for k, v in EXPERIMENT.items() if k != "model"} | {"model": {"build": "sine_mlp"}}
    made = Experiment.of(given).override(*settings)
    return made if not name else Experiment.parse(made.to_toml(), f"{name}.toml")


class TestClock:
    """Seconds that pass when a test says so."""

    __test__ = False

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds


class Desk:
    """A conductor on a folder, and devices that have joined."""

    def __init__(self, folder: Path, *experiments: Experiment, devices: int = 4) -> None:
        self.folder, self.experiments = folder, experiments
        self.loop = asyncio.new_event_loop()
        self.asked: list[Request] = []
        self.open()
        for number in range(devices - len(self.conductor.devices)):
            self.conductor.devices.join(f"device-{number}", CARD, "test", 0.0)
        self.conductor.database.commit()

    def open(self, new_run: bool = False) -> None:
        """Start, or start again: what a crash leaves is what the database has."""
        database = Database(self.folder)
        try:
            self.conductor = Conductor(
                self.folder, database, Devices(database.connection),
                Authority.open(self.folder / "authority"), RoundKeys(self.folder / "round-keys"),
                self.experiments, new_run, Inbox(),
            )  # fmt: skip
        except BaseException:
            database.close()
            raise
        self.clock = TestClock()
        self.clock.seconds = self.conductor.now()
        self.conductor.clock = self.clock  # type: ignore[assignment]

    def crash(self) -> None:
        """End without a farewell, and start again."""
        self.conductor.database.connection.rollback()
        self.conductor.database.close()
        self.asked.clear()
        self.open()

    def close(self) -> None:
        self.conductor.database.close()
        self.loop.close()

    @property
    def hosted(self) -> Hosted:
        """The only run."""
        (hosted,) = self.conductor.hosted.values()
        return hosted

    # ---- asking

    def check_in(self, device: int, wait_s: float = 0.0) -> asyncio.Future[Any]:
        reply: asyncio.Future[Any] = self.loop.create_future()
        self.asked.append(CheckIn(device, reply, wait_s))
        return reply

    def offer(
        self, update: Update, work: Work, flaw: str = "", wait_s: float = 0.0
    ) -> asyncio.Future[Any]:
        reply: asyncio.Future[Any] = self.loop.create_future()
        offered = Offered(update, work.model.digest, flaw)
        self.asked.append(Offer(update.device, work.run, offered, reply, wait_s))
        return reply

    def call(self, function: Any) -> Any:
        reply: asyncio.Future[Any] = self.loop.create_future()
        self.asked.append(Call(function, reply))
        self.cycle()
        return reply.result()

    def cycle(self, after_s: float = 0.0) -> None:
        """One cycle, so many seconds later, with all that was asked."""
        self.clock.seconds += after_s
        asked, self.asked = self.asked, []
        self.conductor.work(asked)
        self.loop.run_until_complete(asyncio.sleep(0))

    def answer(self, device: int, wait_s: float = 0.0) -> Answer:
        """What the device is told at once."""
        reply = self.check_in(device, wait_s)
        self.cycle()
        return answer_in(reply)

    def hand_in(self, update: Update, work: Work, flaw: str = "") -> Receipt:
        reply = self.offer(update, work, flaw)
        self.cycle()
        receipt, _ = reply.result()
        assert isinstance(receipt, Receipt)
        return receipt

    # ---- devices that do what they are told

    def visit(self, work: Work) -> Update:
        """What the device of the lease sends back: really trained, or really judged."""
        blobs = self.conductor.by_id[work.run].models.blobs
        learner = Learner(Program(blobs[work.program.digest]))
        task = self.conductor.by_id[work.run].work.task
        lease = work.lease
        outcome = learner.visit(
            codec.resolve(work.instruction, blobs),
            np.frombuffer(blobs[work.model.digest], np.float32),
            lambda part: learner.samples(*task.samples(work.seed, lease.round, lease.device, part)),
            Key(work.seed, lease.round, lease.device),
        )
        return Update(
            lease.id, lease.device, lease.round, lease.version, outcome.samples, outcome.values,
            outcome.ranges, outcome.measures, outcome.mask, outcome.places, outcome.quantised,
        )  # fmt: skip

    def work_off(self, devices: range, most: int = 100) -> None:
        """The devices do what they are asked to, until nobody has work any more."""
        for _ in range(most):
            given = [(a, self.visit(a)) for d in devices if isinstance(a := self.answer(d), Work)]
            for work, update in given:
                self.hand_in(update, work)
            if not given:
                return


def given(desk: Desk, device: int) -> Work:
    answer = desk.answer(device)
    assert isinstance(answer, Work)
    return answer


def answer_in(reply: asyncio.Future[Any]) -> Answer:
    """The answer in a reply to a check-in or an update."""
    _, message = reply.result()
    return codec.read_answer(message)


Opened = Callable[..., Desk]
"""Makes desks of settings; the fixture of `conftest` closes them."""

"""A run under the virtual clock: the coordinator's rounds meet the fleet.

The loop is that of any coordinator: a command of `fedtiny.rounds.machine` is carried out, and when
there is none left, time moves to whatever happens next. Contact is ideally paced: as many devices
check in as there are leases to give, in a drawn order. A visit is computed when its update is
admitted, so that what nobody reads costs nothing.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny import draws, rng
from fedtiny.device.session import Event as Happens
from fedtiny.engine import native
from fedtiny.errors import RunError
from fedtiny.experiment import Experiment
from fedtiny.registry.cost import visit_cost
from fedtiny.rounds import machine
from fedtiny.rounds.events import (
    Begin,
    CheckIns,
    Command,
    Commit,
    Committed,
    Done,
    Event,
    Fold,
    Folded,
    Grant,
    Offers,
    Open,
    Reply,
    Tick,
)  # fmt: skip
from fedtiny.rounds.measures import Measures
from fedtiny.runs import Checkpoint
from fedtiny.simulator.contact import Contact
from fedtiny.simulator.evaluation import Protocol
from fedtiny.simulator.fleet import Fleet, Workload, length
from fedtiny.simulator.flights import Flights
from fedtiny.simulator.ledger import Ledger
from fedtiny.simulator.sessions import ColumnSessions, ObjectSessions, Sessions
from fedtiny.simulator.traces import availability_of
from fedtiny.simulator.visits import (
    Cohort,
    ColumnVisits,
    Measured,
    ObjectVisits,
    Personal,
    Trained,
    Visits,
)  # fmt: skip
from fedtiny.strategies import calls
from fedtiny.strategies.base import Round
from fedtiny.values import ACCEPTED, DUPLICATE, LATE, LOCAL, TRAIN, Update

if TYPE_CHECKING:
    from fedtiny.engine.program import Program
    from fedtiny.fold import Total
    from fedtiny.strategies.base import State
    from fedtiny.tensors import Float64, Int64

    Bools = np.ndarray[Any, np.dtype[np.bool_]]

COLUMNS, OBJECTS = "columns", "objects"


class Simulation:
    """One run, advanced round by round by `step`.

    Args:
        experiment: What to run.
        devices: "columns" (native runtime, whole cohorts in C) or "objects" (one Session and one
            Learner at a time); both give the same history.
        append: Takes each row of the history as it comes.
    """

    def __init__(
        self,
        experiment: Experiment,
        devices: str,
        append: Callable[[dict[str, Any]], None],
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.experiment, self.append = experiment, append
        self.work = Workload.of(experiment)
        self.fleet = Fleet.of(self.work)
        self.strategy, self.layout = self.work.strategy, self.work.layout
        self.counts = self.work.samples(np.arange(experiment.fleet.devices))
        self.rules = _rules(self.work)
        self.finished = False
        self._queue: deque[Command] = deque()
        self._restore(checkpoint, devices)
        self.protocols = [
            Protocol.of(name, asked, self.work, self.fleet)
            for name, asked in experiment.evaluate.items()
        ]
        self._begin(checkpoint)

    # ---- beginning and going on ----

    def _restore(self, checkpoint: Checkpoint | None, devices: str) -> None:
        fleet, n = self.experiment.fleet, self.experiment.fleet.devices
        states = np.zeros(n, np.int8)
        self.now, self.flights, self.ledger = 0.0, Flights.none(), Ledger()
        ranges = self.layout.ranges(p.name for p in self.layout.parameters if p.group == LOCAL)
        self.personal = Personal.empty(ranges, n) if ranges else None
        if checkpoint:
            states = checkpoint.arrays["sessions"]
            self._restore_values(checkpoint)
        else:
            self.model = self.work.initial
            self.state: State = calls.start(self.strategy, self.layout, self.model)
        seed = self.experiment.seed
        self.visits: Visits
        self.sessions: Sessions
        if devices == COLUMNS and native.available():
            threads = fleet.threads or os.cpu_count() or 1
            self.visits = ColumnVisits(self.work.task, seed, self.personal, threads)
            self.sessions = ColumnSessions(states)
        else:
            self.visits = ObjectVisits(self.work.task, seed, self.personal)
            self.sessions = ObjectSessions(seed, states)
        reach = availability_of(self.experiment)
        self.contact = Contact(seed, self.fleet.training, n, self.sessions, reach)
        self._contact_at = self.now

    def _restore_values(self, checkpoint: Checkpoint) -> None:
        arrays, values = checkpoint.arrays, checkpoint.values
        self.now = float(values["now"])
        self.model = arrays["model"]
        stored = {k.removeprefix("state."): a for k, a in arrays.items() if k.startswith("state.")}
        self.state = {**values["state"], **stored}
        self.ledger = Ledger.from_json(values["ledger"])
        self.flights = Flights(*(arrays[f"flights.{name}"] for name in Flights.__annotations__))
        if self.personal:
            self.personal.values = arrays["personal"]
            self.personal.known = arrays["personal.known"]

    def _begin(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint:
            past = machine.Past([np.empty(0, np.int64)] * checkpoint.round)
            version = int(checkpoint.values["version"])
            self.rounds = machine.State(self.rules, "between", checkpoint.round, version, past=past)
            self._tell(Tick(self.now))
            return
        self.rounds = machine.start(self.rules)
        self._evaluate(0)
        self._tell(Begin(self.now, self.fleet.training.size))

    def checkpoint(self) -> Checkpoint:
        """All that is needed to go on after the last committed round."""
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "model": self.model, "sessions": self.sessions.states(),
        }  # fmt: skip
        arrays |= {f"flights.{n}": getattr(self.flights, n) for n in Flights.__annotations__}
        arrays |= {f"state.{k}": v for k, v in self.state.items() if isinstance(v, np.ndarray)}
        if self.personal:
            arrays |= {"personal": self.personal.values, "personal.known": self.personal.known}
        values = {
            "now": self.now,
            "version": self.rounds.version,
            "state": {k: v for k, v in self.state.items() if not isinstance(v, np.ndarray)},
            "ledger": self.ledger.to_json(),
        }
        return Checkpoint(self.rounds.round, arrays, values)

    # ---- the loop ----

    def step(self) -> dict[str, Any] | None:
        """Run until a round has committed; its row of the history, or None at the end."""
        self._row: dict[str, Any] | None = None
        while self._row is None and not self.finished:
            if self._queue:
                self._carry_out(self._queue.popleft())
            elif not self._make_contact():
                self._pass_time()
        return self._row

    def _tell(self, event: Event) -> None:
        self.rounds, commands = machine.step(self.rounds, event)
        self._queue.extend(commands)

    def _carry_out(self, command: Command) -> None:
        action = _ACTIONS.get(type(command))
        if action:
            action(self, command)

    def _make_contact(self) -> bool:
        """As many devices check in as there is demand for; False if nobody can."""
        if self._contact_at > self.now or not self.rounds.demand:
            return False
        if self.now >= self.rounds.closes_at:
            return False
        devices = self.contact.take(self.rounds.demand, self.now)
        if not devices.size:
            self._contact_at = self.contact.next_reachable(self.now)
            if np.isinf(self._contact_at):
                return self._serve_again()
            return False
        self.sessions.apply(devices, Happens.WAKE, self.now)
        self._tell(CheckIns(self.now, devices))
        return True

    def _serve_again(self) -> bool:
        """Nobody else is left: those whose lease has ended without an update may have another."""
        ended = self.rounds.devices[np.isin(self.rounds.status, (machine.REFUSED, machine.ENDED))]
        if not self.contact.serve_again(ended):
            return False
        self._contact_at = self.now
        return True

    def _pass_time(self) -> None:
        """Move to what happens next: an arrival, somebody in reach, a deadline."""
        contact_at = self._contact_at if self.rounds.demand else np.inf
        wake = min(self.rounds.wakes_at, contact_at)
        if self.flights.next_at <= wake and self.flights.leases.size:
            room = self.rules.cohort - self.rounds.accepted
            count = self.flights.batch(wake, self.rounds.round, room)
            self._arrive(count)
        elif wake < np.inf:
            self._move_to(wake)
            self._tell(Tick(self.now))
        else:
            raise RunError(
                f"round {self.rounds.round:,} waits for {self.rounds.demand:,} devices, and none "
                f"of the {self.fleet.training.size:,} that train can ever be reached again; "
                "change fleet.availability"
            )

    def _move_to(self, time: float) -> None:
        self.now = max(self.now, time)
        self._contact_at = self.now
        self.contact.rewind()

    def _arrive(self, count: int) -> None:
        ended = self.flights.take(slice(count))
        self.flights = self.flights.take(slice(count, None))
        self._move_to(float(ended.ends_at[-1]))
        gone, here = ended.take(~ended.arrives), ended.take(ended.arrives)
        self.sessions.apply(gone.devices, Happens.EXPIRED, self.now)
        self.sessions.apply(here.devices, Happens.FINISHED, self.now)
        if not here.leases.size:
            return self._tell(Tick(self.now))
        self._offered = here
        self._tell(Offers(self.now, here.leases, here.devices, here.versions))

    # ---- what the rounds command ----

    def _open(self, command: Open) -> None:
        self.contact.open(command.round, command.window)
        self._contact_at = self.now
        if command.window:
            return
        self.round = Round(command.round, self.rules.rounds)
        self.instruction = calls.ask(self.strategy, self.round, self.state)
        self._trained: list[Trained] = []
        self._measured: list[Measured] = []

    def _grant(self, command: Grant) -> None:
        devices = command.devices
        self.contact.served(devices)
        self.sessions.instruct(devices, command.leases, command.deadlines, self.now)
        self.sessions.apply(devices, Happens.FETCHED, self.now)
        lost = self._drop_out(command)
        seconds, upload_bytes, joules = self._costs(devices, lost)
        ends_at = self.now + seconds
        arrives = ~lost & (ends_at < command.deadlines)
        self.flights = self.flights.joined(
            Flights(
                command.leases, devices, np.full(devices.size, command.version),
                np.where(arrives, ends_at, command.deadlines), command.deadlines, arrives,
            )
        )  # fmt: skip
        spent = self.ledger.open
        spent.leases += devices.size
        spent.bytes_down += 4 * self.layout.size * devices.size
        spent.bytes_up += int(upload_bytes[arrives].sum())
        spent.energy_j += float(joules.sum())

    def _drop_out(self, command: Grant) -> Bools:
        """Who never comes back: drawn by device, round and window."""
        share, window = self.experiment.fleet.drop_out, self.rounds.window
        if not share:
            return np.zeros(command.devices.size, bool)
        words = draws.words(
            self.experiment.seed, command.round, command.devices, rng.Purpose.DROPOUT, window + 1
        )
        return np.asarray(draws.uniform(words[:, window]) < share)

    def _costs(self, devices: Int64, lost: Bools) -> tuple[Float64, Int64, Float64]:
        """Seconds, uploaded bytes and joules of each visit; who is lost uploads nothing."""
        macs = np.zeros(devices.size)
        upload_bytes = np.zeros(devices.size, np.int64)
        samples = np.zeros(devices.size)
        for profile, at in self.fleet.split(devices):
            assert profile.program is not None
            steps, samples[at] = self._used(profile.program, devices[at])
            macs[at] = steps * profile.program.footprint.macs_per_step
            upload_bytes[at] = 4 * length(profile.program.sent_ranges(self.instruction))
        cost = visit_cost(
            self.fleet.boards.take(devices),
            macs=macs,
            download_bytes=4 * self.layout.size,
            upload_bytes=np.where(lost, 0, upload_bytes),
            samples=samples,
            sample_period_s=self.experiment.data.sample_period,
        )
        return cost.seconds, upload_bytes, cost.joules

    def _used(self, program: Program, devices: Int64) -> tuple[Int64, Int64]:
        counts = {part: column[devices] for part, column in self.counts.items()}
        return self.instruction.used(counts, program.batch)

    def _fold(self, command: Fold) -> None:
        refused: list[Int64] = []
        reasons: tuple[str, ...] = ()
        for profile, at in self.fleet.split(command.devices):
            assert profile.program is not None
            cohort = self._cohort(profile.program, command.leases[at], command.devices[at])
            done = self._visit(cohort)
            refused.append(cohort.leases[list(done.refused)])
            reasons += done.reasons
        bad = np.concatenate(refused)
        self.ledger.refuse(reasons)
        good = command.leases[~np.isin(command.leases, bad)] if bad.size else command.leases
        self._tell(Folded(self.now, good, bad, reasons))

    def _visit(self, cohort: Cohort) -> Trained | Measured:
        if self.instruction.kind == TRAIN:
            self._trained.append(self.visits.train(cohort))
            return self._trained[-1]
        self._measured.append(self.visits.measure(cohort))
        return self._measured[-1]

    def _cohort(self, program: Program, leases: Int64, devices: Int64) -> Cohort:
        samples = np.asarray(self._used(program, devices)[1] + np.zeros(devices.size, np.int64))
        weighed = np.maximum(samples, 1).astype(np.float64)  # an empty visit is refused anyway
        return Cohort(
            program, self.instruction, self.model, self.experiment.seed, self.round.t,
            self.rounds.version, leases, devices, samples,
            calls.weight(self.strategy, self.round, weighed),
            self.strategy.fold_rule, self.strategy.needs == "all",
        )  # fmt: skip

    def _reply(self, command: Reply) -> None:
        delivered = command.status in (ACCEPTED, DUPLICATE)
        order = np.argsort(self._offered.leases)
        at = order[np.searchsorted(self._offered.leases, command.leases, sorter=order)]
        event = Happens.ACCEPTED if delivered else Happens.REFUSED
        self.sessions.apply(self._offered.devices[at], event, self.now)
        self.ledger.open.accepted += command.leases.size * (command.status == ACCEPTED)
        self.ledger.open.late += command.leases.size * (command.status == LATE)

    def _commit(self, command: Commit) -> None:
        changed = self.instruction.kind == TRAIN and not command.failed
        if changed:
            self.model, self.state = calls.finish(
                self.strategy, self.round, self.model, self._contribution(), self.state
            )
        version = self.rounds.version + changed
        self._tell(Committed(self.now, changed))
        row = {"kind": "round", "round": command.round, "time_s": self.now, "version": version}
        self._row = row | self.ledger.close(command.failed) | self._figures()
        self.append(self._row)
        every, done = self.experiment.run.evaluate_every, command.round + 1
        if done == self.rules.rounds or (every and done % every == 0):
            self._evaluate(done)

    def _figures(self) -> dict[str, Any]:
        """The mean training loss of the round, and what it measured."""
        steps = sum(part.steps for part in self._trained)
        loss_sum = sum(part.loss_sum for part in self._trained)
        figures: dict[str, Any] = {"loss": loss_sum / steps if steps else None}
        if self._measured:
            merged = reduce(Measures.merge, (part.measures for part in self._measured))
            figures["measures"] = merged.values()
        return figures

    def _contribution(self) -> Total | list[Update]:
        if self.strategy.needs == "all":
            updates = [update for part in self._trained for update in part.updates]
            return sorted(updates, key=lambda update: update.lease)
        return reduce(lambda a, b: a.merge(b), (part.total for part in self._trained))

    def _done(self, command: Done) -> None:
        self.finished = True

    def _evaluate(self, rounds_done: int) -> None:
        for protocol in self.protocols:
            row = {"kind": "evaluation", "round": rounds_done, "time_s": self.now}
            row["name"] = protocol.name
            self.append(row | protocol.run(self.visits, self.model))


_ACTIONS: dict[type[Command], Callable[[Simulation, Any], None]] = {
    Open: Simulation._open,
    Grant: Simulation._grant,
    Fold: Simulation._fold,
    Reply: Simulation._reply,
    Commit: Simulation._commit,
    Done: Simulation._done,
}


def _rules(work: Workload) -> machine.Rules:
    experiment, cohort = work.experiment, work.strategy.cohort
    run = experiment.run
    return machine.Rules(
        rounds=run.rounds,
        cohort=cohort,
        deadline_s=run.deadline,
        minimum=min(run.minimum, cohort),
        over_selection=run.over_selection,
        seed=experiment.seed,
    )

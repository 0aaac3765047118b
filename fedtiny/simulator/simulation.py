"""A run under the virtual clock: the coordinator's rounds meet the fleet.

The loop is that of any coordinator: a command of `fedtiny.rounds.machine` is carried out, and when
there is none left, time moves to whatever happens next. Contact is ideally paced: as many devices
check in as there are leases to give, in a drawn order. A visit is computed when its update is
admitted, so that what nobody reads costs nothing: when work outlives its round, with the model and
the instruction that it was given (`under_way`).

That has a price: a visit without samples, or one that diverges, is found out when its update is
admitted. Its device counts as one that has finished and was refused, with the bytes of an update,
where a real device would have failed and sent none.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedtiny import draws, rng
from fedtiny.device.session import Event as Happens
from fedtiny.engine import native
from fedtiny.errors import RunError
from fedtiny.experiment import Experiment, rules
from fedtiny.experiment.workload import Workload
from fedtiny.registry.cost import visit_cost
from fedtiny.rounds import machine
from fedtiny.rounds.content import OpenRound
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
from fedtiny.rounds.invitation import remaining
from fedtiny.rounds.leases import NO_LEASES, Past
from fedtiny.rounds.measures import Measures
from fedtiny.runs import Checkpoint
from fedtiny.simulator.attacks import Attackers
from fedtiny.simulator.columns import ColumnWorkers
from fedtiny.simulator.contact import Contact
from fedtiny.simulator.evaluation import Adaptation
from fedtiny.simulator.fleet import Fleet
from fedtiny.simulator.flights import Flights
from fedtiny.simulator.online import Meeting
from fedtiny.simulator.sessions import ColumnSessions, ObjectSessions, Sessions
from fedtiny.simulator.standing import Standing
from fedtiny.simulator.traces import availability_of
from fedtiny.simulator.visits import (
    Cohort,
    ObjectWorkers,
    Visited,
    Workers,
    has_own_length,
    in_pieces,
    row_bytes,
)
from fedtiny.strategies import calls
from fedtiny.strategies.base import Round
from fedtiny.values import ACCEPTED, DUPLICATE, LATE, STALE, round_of
from fedtiny.wire.vectors import mask_name
from fedtiny.wire.visit import VisitBytes, fetch_bytes

if TYPE_CHECKING:
    from fedtiny.engine.program import Program
    from fedtiny.tensors import Bools, Float64, Int64

DeviceForm = Literal["columns", "objects"]


class Simulation:
    """One run, advanced round by round by `step`.

    Args:
        experiment: What to run.
        devices: "columns" (whole cohorts in C; where there is no native runtime, objects) or
            "objects" (one Session and one Learner at a time); both give the same history.
        append: Takes each row of the history as it comes.
    """

    def __init__(
        self,
        experiment: Experiment,
        devices: DeviceForm,
        append: Callable[[dict[str, Any]], None],
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.experiment, self.append = experiment, append
        self.work = Workload.of(experiment)
        rules.check(self.work)
        self.fleet = Fleet.of(self.work)
        self.layout = self.work.layout
        self.rules = self.work.rules(experiment.seed)
        self.standing = (
            Standing.restored(self.work, checkpoint) if checkpoint else Standing.at_start(self.work)
        )
        self.attackers = Attackers.of(experiment, self.fleet.training)
        self.workers, self.sessions = _devices(devices, self.work, self.standing, self.attackers)
        reach = availability_of(experiment)
        self.contact = Contact(
            experiment.seed, self.fleet.training, experiment.fleet.devices, self.sessions, reach
        )
        self.adaptations = [
            Adaptation.of(name, asked, self.work, self.fleet)
            for name, asked in experiment.evaluate.items()
        ]
        self.streams = [
            Meeting.of(name, asked, self.work, self.fleet)
            for name, asked in experiment.online.items()
        ]
        self.finished = False
        self.visited: list[Visited] = []
        self._contact_at = self.standing.now
        self._offered = Flights.none()
        self._row: dict[str, Any] | None = None
        self._queue: deque[Command] = deque()
        if checkpoint:
            self._go_on()
        else:
            self._begin()

    # ---- beginning and going on ----

    def _begin(self) -> None:
        self.rounds = machine.start(self.rules)
        self._evaluate(0)
        self._tell(Begin(self.standing.now, self.fleet.training.size))

    def _go_on(self) -> None:
        stands = self.standing
        self.rounds = machine.State(
            self.rules, "between", stands.round, stands.version,
            leases=stands.flights.live() if self.rules.asynchronous else NO_LEASES,
            past=Past([np.empty(0, np.int64)] * stands.round),
            drop_out=stands.drop_out,
        )  # fmt: skip
        self._tell(Tick(stands.now))

    def checkpoint(self) -> Checkpoint:
        """All that is needed to go on after the last committed round."""
        self.standing.states = self.sessions.states().copy()
        self.standing.drop_out = self.rounds.drop_out
        return self.standing.checkpoint()

    def close(self) -> None:
        """Let the threads go; to be called at the end, whatever that was."""
        self.workers.close()

    # ---- the loop ----

    def step(self) -> dict[str, Any] | None:
        """Run until a round has committed; its row of the history, or None at the end."""
        self._row = None
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

    @property
    def _demand(self) -> int:
        """How many leases the open window would still give now."""
        closed = self.standing.now >= self.rounds.closes_at
        return 0 if closed else self.rounds.demand

    def _make_contact(self) -> bool:
        """As many devices check in as there is demand for; False if nobody can."""
        if self._contact_at > self.standing.now or not self._demand:
            return False
        devices = self.contact.take(self._demand, self.standing.now)
        if not devices.size:
            self._contact_at = self.contact.next_reachable(self.standing.now)
            if np.isinf(self._contact_at):
                return self._serve_again()
            return False
        self.sessions.apply(devices, Happens.WAKE, self.standing.now)
        self._tell(CheckIns(self.standing.now, devices))
        return True

    def _serve_again(self) -> bool:
        """Nobody else is left: those whose lease has ended without an update may have another."""
        leases, again = self.rounds.leases, self.rounds.renewable(self.standing.now)
        devices = np.setdiff1d(leases.devices[again], leases.devices[~again])
        if not self.contact.serve_again(devices):
            later = leases.deadlines[leases.is_ended & ~again]
            self._contact_at = float(later.min(initial=np.inf))
            return False
        self._contact_at = self.standing.now
        return True

    def _pass_time(self) -> None:
        """Move to what happens next: an arrival, somebody in reach, a deadline."""
        contact_at = self._contact_at if self._demand else np.inf
        wake = min(self.rounds.wakes_at, contact_at)
        if self.standing.flights.next_at <= wake and self.standing.flights.leases.size:
            self._arrive(self._arriving(wake))
        elif wake < np.inf:
            self._move_to(wake)
            self._tell(Tick(self.standing.now))
        else:
            raise RunError(
                f"round {self.rounds.round:,} waits for {self.rounds.demand:,} devices, and none "
                f"of the {self.fleet.training.size:,} that train can ever be reached again; "
                "change fleet.availability"
            )

    def _arriving(self, wake: float) -> int:
        """How many flights can be handled together: when leases outlive their rounds, only one, as
        somebody is asked in its place at once."""
        if self.rules.asynchronous:
            return 1
        room = self.rules.cohort - self.rounds.accepted
        return self.standing.flights.batch(wake, self.rounds.round, room)

    def _move_to(self, time: float) -> None:
        self.standing.now = max(self.standing.now, time)
        self._contact_at = self.standing.now
        self.contact.rewind()

    def _arrive(self, count: int) -> None:
        ended = self.standing.flights.take(slice(count))
        self.standing.flights = self.standing.flights.take(slice(count, None))
        self._move_to(float(ended.ends_at[-1]))
        gone, here = ended.take(~ended.arrives), ended.take(ended.arrives)
        self.sessions.apply(gone.devices, Happens.EXPIRED, self.standing.now)
        self.sessions.apply(here.devices, Happens.FINISHED, self.standing.now)
        if not here.leases.size:
            return self._tell(Tick(self.standing.now))
        self._offered = here
        self._tell(Offers(self.standing.now, here.leases, here.devices, here.versions))

    # ---- what the rounds command ----

    def _open(self, command: Open) -> None:
        if command.window == 0:
            self._begin_round(Round(command.round, self.rules.rounds))
        self.contact.open(command.round, command.window, self.open.barred)
        self._contact_at = self.standing.now

    def _begin_round(self, turn: Round) -> None:
        stands = self.standing
        self.open = OpenRound.of(
            self.work.strategy, turn, self.layout, stands.model, stands.state, stands.version
        )
        remaining(self.fleet.training, self.open.barred, self.rules.needed)
        self.work.check(turn, self.open.instruction)
        self.visited = []
        if self.rules.asynchronous:
            stands.under_way = stands.under_way.and_only(self.open, stands.flights.rounds)

    def _grant(self, command: Grant) -> None:
        devices = command.devices
        self.contact.served(devices)
        self.sessions.instruct(
            devices, command.leases, command.deadlines, command.version, self.standing.now
        )
        self.sessions.apply(devices, Happens.FETCHED, self.standing.now)
        lost = self._drop_out(command)
        carried = self._carried(devices)
        seconds, joules = self._costs(devices, carried, lost)
        ends_at = self.standing.now + seconds
        arrives = ~lost & (ends_at < command.deadlines)
        self.standing.flights = self.standing.flights.merge(
            Flights(
                command.leases, devices, np.full(devices.size, command.version),
                np.where(arrives, ends_at, command.deadlines), command.deadlines, arrives,
            )
        )  # fmt: skip
        spent = self.standing.ledger.open
        spent.leases += devices.size
        spent.bytes_down += int(_down(carried, arrives).sum())
        spent.bytes_up += int(_up(carried, arrives).sum())
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

    def _carried(self, devices: Int64) -> VisitBytes:
        """The bytes of each visit, in columns; the mask is among work and requests.

        Who holds the mask of this round already, or the model, does not fetch it.
        """
        columns = np.zeros((devices.size, 4), np.int64)
        for profile, at in self.fleet.split(devices):
            assert profile.program is not None
            visit = self.work.visit_bytes(profile.program, self.open.instruction)
            fetched = visit.work + visit.mask, visit.requests + visit.mask_requests
            columns[at] = (*fetched, visit.update, visit.receipt)
            if self.work.prunes:
                columns[at, :2] -= self._held(profile.program, devices[at])
        return VisitBytes(*columns.T)

    def _held(self, program: Program, devices: Int64) -> Int64:
        """Bytes down and up that each device saves by what it holds; from now on it holds all."""
        blob, stands = self.open.instruction.of(program.density).mask, self.standing
        visit = self.work.visit_bytes(program, self.open.instruction)
        nbytes = self.work.model_bytes(program, self.open.instruction)
        up, down = fetch_bytes(nbytes, compared=True)
        model = b"%d " % stands.version + (blob or b"")
        saved = np.zeros((devices.size, 2), np.int64)
        things = [(stands.models, model, (down, up))]
        things += [(stands.masks, blob, (visit.mask, visit.mask_requests))] if blob else []
        for held, thing, fetched in things:
            name = np.frombuffer(mask_name(thing), np.uint64)[0]
            saved[held[devices] == name] += np.array(fetched)
            held[devices] = name
        return saved

    def _costs(self, devices: Int64, carried: VisitBytes, lost: Bools) -> tuple[Float64, Float64]:
        """Seconds and joules of each visit; who is lost sends no update."""
        macs = np.zeros(devices.size)
        samples = np.zeros(devices.size)
        for profile, at in self.fleet.split(devices):
            assert profile.program is not None
            counts, footprint = self._counts_of(devices[at]), profile.program.footprint
            macs[at] = self.open.instruction.macs(counts, footprint)
            samples[at] = self.open.instruction.used(counts, footprint.batch)[1]
        cost = visit_cost(
            self.fleet.boards.take(devices),
            macs=macs,
            download_bytes=_down(carried, ~lost),
            upload_bytes=_up(carried, ~lost),
            samples=samples,
            sample_period_s=self.experiment.data.sample_period,
        )
        return cost.seconds, cost.joules

    def _counts_of(self, devices: Int64) -> dict[str, Int64]:
        return {part: column[devices] for part, column in self.work.counts.items()}

    def _fold(self, command: Fold) -> None:
        refused: list[Int64] = []
        reasons: tuple[str, ...] = ()
        for opened, program, at in self._alike(command):
            for piece in in_pieces(at, row_bytes(opened, self.attackers)):
                leases, devices = command.leases[piece], command.devices[piece]
                done = self.workers.visit(self._cohort(opened, program, leases, devices))
                self.visited.append(done)
                self._correct_bytes(program, done, leases.size - len(done.refused))
                refused.append(leases[list(done.refused)])
                reasons += done.reasons
        bad = np.concatenate(refused)
        self.standing.ledger.refuse(reasons)
        good = command.leases[~np.isin(command.leases, bad)] if bad.size else command.leases
        self._tell(Folded(self.standing.now, good, bad, reasons))

    def _alike(self, command: Fold) -> Iterator[tuple[OpenRound, Program, Int64]]:
        """The offers by the round that gave their leases and by Program: positions."""
        given = round_of(command.leases)
        for t in np.unique(given).tolist():
            ours = np.flatnonzero(given == t)
            opened = self.standing.under_way.rounds.get(t, self.open)
            for profile, at in self.fleet.split(command.devices[ours]):
                assert profile.program is not None
                yield opened, profile.program, ours[at]

    def _correct_bytes(self, program: Program, done: Visited, accepted: int) -> None:
        """Updates that have a length of their own were counted with the longest one, until they
        were made."""
        if has_own_length(self.open.instruction):
            bound = self.work.visit_bytes(program, self.open.instruction).update
            self.standing.ledger.open.bytes_up += done.exact_bytes - accepted * bound

    def _cohort(self, opened: OpenRound, program: Program, leases: Int64, devices: Int64) -> Cohort:
        _, used = opened.instruction.used(self._counts_of(devices), program.batch)
        samples = np.asarray(used + np.zeros(devices.size, np.int64))
        weighed = np.maximum(samples, 1).astype(np.float64)  # an empty visit is refused anyway
        now = opened if opened is self.open else opened.late(self.rounds.version)
        weights = now.weights(weighed, opened.version)
        return Cohort(program, now, opened.version, leases, devices, samples, weights)

    def _reply(self, command: Reply) -> None:
        delivered = command.status in (ACCEPTED, DUPLICATE)
        order = np.argsort(self._offered.leases)
        at = order[np.searchsorted(self._offered.leases, command.leases, sorter=order)]
        event = Happens.ACCEPTED if delivered else Happens.REFUSED
        self.sessions.apply(self._offered.devices[at], event, self.standing.now)
        if delivered:  # maybe on a lease of an earlier round
            self.contact.served(self._offered.devices[at])
        self.standing.ledger.open.accepted += command.leases.size * (command.status == ACCEPTED)
        self.standing.ledger.open.late += command.leases.size * (command.status in (LATE, STALE))

    def _commit(self, command: Commit) -> None:
        stands = self.standing
        measures = reduce(Measures.merge, (each.measures for each in self.visited), Measures())
        parts = [each.part for each in self.visited]
        done = self.open.conclude(parts, measures, command.failed, self.work.gate)
        stands.model, stands.state = done.model, done.state
        self._tell(Committed(stands.now, done.changed))
        stands.round, stands.version = command.round + 1, stands.version + done.changed
        stands.keeping.commit()
        self._row = {
            "kind": "round", "round": command.round, "time_s": stands.now,
            "version": stands.version,
            **stands.ledger.close(command.failed), **self._figures(measures),
            **({"gated": done.gated} if done.gated else {}),
        }  # fmt: skip
        self.append(self._row)
        every = self.experiment.run.evaluate_every
        if stands.round == self.rules.rounds or (every and stands.round % every == 0):
            self._evaluate(stands.round)

    def _figures(self, measures: Measures) -> dict[str, Any]:
        """The mean training loss of the round, or what it measured; and what its strategy tells."""
        steps = sum(each.steps for each in self.visited)
        loss_sum = math.fsum(each.loss_sum for each in self.visited)
        is_told = bool(steps) and math.isfinite(loss_sum)
        figures: dict[str, Any] = {"loss": loss_sum / steps if is_told else None}
        if self.visited and not self.open.trains:
            figures["measures"] = measures.values()
        told = calls.telemetry(
            self.work.strategy, self.open.round, self.standing.model, self.standing.state
        )
        return figures | ({"telemetry": told} if told else {})

    def _done(self, command: Done) -> None:
        self.finished = True

    def _evaluate(self, rounds_done: int) -> None:
        turn = Round(rounds_done, self.rules.rounds)
        masks = calls.masks(self.work.strategy, turn, self.standing.state, self.layout)
        for adaptation in self.adaptations:
            row = {"kind": "evaluation", "round": rounds_done, "time_s": self.standing.now}
            row["name"] = adaptation.name
            self.append(row | adaptation.run(self.workers, self.standing.model, masks))
        for meeting in self.streams if rounds_done == self.rules.rounds else ():
            row = {"kind": "online", "round": rounds_done, "time_s": self.standing.now}
            row["name"] = meeting.name
            self.append(row | meeting.run(self.standing.model, self.standing.keeping, masks))


_ACTIONS: dict[type[Command], Callable[[Simulation, Any], None]] = {
    Open: Simulation._open,
    Grant: Simulation._grant,
    Fold: Simulation._fold,
    Reply: Simulation._reply,
    Commit: Simulation._commit,
    Done: Simulation._done,
}


def _down(carried: VisitBytes, arrives: Bools) -> Int64:
    """Bytes to each device; who never arrives gets no receipt."""
    return np.asarray(carried.work + carried.receipt * arrives)


def _up(carried: VisitBytes, arrives: Bools) -> Int64:
    """Bytes from each device; who never arrives sends no update."""
    return np.asarray(carried.requests + carried.update * arrives)


def _devices(
    form: DeviceForm, work: Workload, standing: Standing, attackers: Attackers | None
) -> tuple[Workers, Sessions]:
    """Who computes for the devices, and where each of them stands."""
    seed, threads = work.experiment.seed, work.experiment.fleet.threads or os.cpu_count() or 1
    task = attackers.misled(work.task) if attackers else work.task
    if form == "columns" and native.available():
        workers = ColumnWorkers(task, seed, standing.keeping, attackers, threads)
        return workers, ColumnSessions(standing.states)
    objects = ObjectWorkers(task, seed, standing.keeping, attackers)
    return objects, ObjectSessions(seed, standing.states)

"""The thread that owns all state: it decides in cycles, and answers when a cycle is durable.

A cycle takes everything that has arrived, tells it to the runs, commits one transaction, and then
answers. So nothing is answered that a crash could undo, and many devices share a commit. When a
cycle fails, nothing of it has happened: the transaction is rolled back, the runs are read anew
from the database, and those who asked are told to ask again.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedtiny import rng
from fedtiny.errors import ExperimentError, FedtinyError, IdentityError, RunError, StrategyError
from fedtiny.experiment import rules
from fedtiny.experiment.workload import Workload
from fedtiny.rounds.events import NEVER
from fedtiny.server import crash_points
from fedtiny.server.clock import RunClock
from fedtiny.server.facts import read_fact, write_fact
from fedtiny.server.hosting import Hosted, Offered
from fedtiny.server.inbox import Answered, Call, CheckIn, Inbox, Offer, Request, deliver
from fedtiny.server.keeping import Folder
from fedtiny.values import ACCEPTED, DUPLICATE, UNKNOWN, DeviceCard, Receipt
from fedtiny.wire.codec import Answer, ComeBack, Dismissed, write_answer
from fedtiny.wire.pb import fleet_pb2 as pb

if TYPE_CHECKING:
    import asyncio

    from fedtiny.experiment import Experiment
    from fedtiny.server.authority import Authority
    from fedtiny.server.devices import Devices
    from fedtiny.server.sealing import RoundKeys
    from fedtiny.server.storage import Database

log = logging.getLogger("fedtiny.coordinator")

T = TypeVar("T")
_SOON_S, _LONG_S, _AFTER_FAILURE_S = 2.0, 600.0, 0.2
MOST_PARKED = 20_000
"""Devices that may wait for work at a time; each holds a call open."""
_SAVE_SEEN_S = 30.0
_REVOKED = "the device was revoked"


class Unavailable(Exception):
    """The coordinator cannot do it now; whoever asked may ask again."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A device that waits for work until a time."""

    check_in: CheckIn
    until: float


@dataclass(eq=False)
class Conductor:
    """The runs of one coordinator; ``halted`` are those whose strategy failed, by id, and why.

    Everything but `put`, `call` and `stop` belongs to the thread of `conduct`.
    """

    folder: Path
    database: Database
    devices: Devices
    authority: Authority
    keys: RoundKeys
    experiments: Sequence[Experiment]
    new_run: bool = False
    inbox: Inbox = field(default_factory=Inbox)
    hosted: dict[str, Hosted] = field(default_factory=dict)
    parked: dict[int, Parked] = field(default_factory=dict)
    halted: dict[bytes, str] = field(default_factory=dict)
    draining: bool = False
    cycles: int = 0

    def __post_init__(self) -> None:
        self.clock = RunClock(float(read_fact(self.database, "clock_s") or 0.0))
        self._answers: list[Answered] = []
        self._timers: list[tuple[float, int, int]] = []  # (until, serial, device)
        self._serial = count()
        self._occasions: dict[str, tuple[int, ...]] = {}
        self._stopped = threading.Event()
        self._seen_saved_at = 0.0
        self.failure = ""  # what failed last
        self._folders: dict[str, Folder] = {}
        self._broken = False  # whether memory may know what the database does not
        self._works = [Workload.of(experiment) for experiment in self.experiments]
        for work in self._works:
            rules.check(work, deployed=True)
        self._open_runs(self.new_run)
        self.database.commit()
        self._keep_folders()

    def _open_runs(self, new_run: bool) -> None:
        """Begin the runs, or go on with them as the database has them."""
        opened: dict[str, Hosted] = {}
        for work in self._works:
            hosted = self._opened(work, new_run)
            if hosted.name in opened:
                raise ExperimentError(f"two files are called {hosted.name!r}; rename one of them")
            opened[hosted.name] = hosted
        self._host(opened)

    def _reopen_runs(self) -> None:
        """The same after a failure, for the runs that are not halted."""
        served = self.hosted
        while True:
            opened = {
                n: self._guarded(h, lambda h: self._opened(h.work)) for n, h in served.items()
            }
            sound = {name: hosted for name, hosted in opened.items() if hosted is not None}
            if len(sound) == len(served):
                break
            # What a run that cannot be opened has written must not be committed with the others'.
            self.database.connection.rollback()
            served = {name: served[name] for name in sound}
        self._host(sound)
        self._folders.clear()

    def _guarded(self, hosted: Hosted, act: Callable[[Hosted], T]) -> T | None:
        """What a run does; if its strategy fails the run is halted, and the others go on.

        The updates of its round are in the journal: after a start with the strategy repaired the
        round is finished with them.
        """
        try:
            return act(hosted)
        except StrategyError as error:
            hosted.write_history()
            self.failure = f"the run {hosted.name} is halted: {error}"
            self.halted[hosted.run] = self.failure
            log.error("%s; repair it, and start the coordinator again", self.failure)
            self._host({name: h for name, h in self.hosted.items() if h is not hosted})
            return None

    def _opened(self, work: Workload, new_run: bool = False) -> Hosted:
        signer = self.authority.signer
        hosted = Hosted.open(work, self.database, self.keys, signer, self.now(), new_run=new_run)
        hosted.cards = lambda: [device.card for device in self.devices.rows()]
        hosted.is_shut_out = self._is_shut_out
        return hosted

    def _is_shut_out(self, device: int) -> bool:
        return device < len(self.devices) and self.devices.is_revoked(device)

    def _host(self, opened: dict[str, Hosted]) -> None:
        self.hosted = opened
        self.by_id = {hosted.run: hosted for hosted in opened.values()}
        self._occasions.clear()

    @property
    def over(self) -> bool:
        """Whether every run is."""
        return not self.halted and all(hosted.done for hosted in self.hosted.values())

    def now(self) -> float:
        """Seconds of service."""
        return self.clock.now()

    # ---- other threads

    def put(self, request: Request) -> None:
        """Ask for something; it is answered when it is durable."""
        self.inbox.put(request)

    async def call(self, function: Callable[[Conductor], T]) -> T:
        """What the function returns, called between two decisions; durable when it is here."""
        import asyncio

        reply: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.inbox.put(Call(function, reply))
        return await reply

    def revoke(self, name: str) -> int:
        """Shut a device out; its index. It contributes nothing from now on."""
        index = self.devices.revoke(name, time.time())
        for hosted in list(self.hosted.values()):
            self._guarded(hosted, lambda h: h.shut_out(self.now(), index))
        if parked := self.parked.pop(index, None):
            self._turn_away(parked.check_in)
        return index

    def rollback(self, hosted: Hosted, version: int) -> None:
        """Publish an older model of a run as its newest."""
        self._guarded(hosted, lambda h: h.rollback(self.now(), version))
        if halted := self.halted.get(hosted.run):
            raise RunError(halted)

    def stop(self) -> None:
        """End `conduct` after the cycle that is under way."""
        self._stopped.set()
        self.inbox.wake()

    # ---- the loop

    def conduct(self) -> None:
        """Work until `stop`."""
        while not self._stopped.is_set():
            self.work(self.inbox.take(self._patience_s()))
        self._farewell()

    def _patience_s(self) -> float:
        wakes_at = min((hosted.wakes_at for hosted in self.hosted.values()), default=NEVER)
        if self._timers:
            wakes_at = min(wakes_at, self._timers[0][0])
        return min(max(0.0, wakes_at - self.now()), _SOON_S)

    def work(self, requests: Sequence[Request]) -> None:
        """One cycle."""
        self.cycles += 1
        try:
            if self._broken:
                self._mend()
            self._cycle(requests)
        except Exception as error:
            self._undo(requests, error)
        answers, self._answers = self._answers, []
        crash_points.reach("answer.before")
        deliver(answers)
        crash_points.reach("answer.after")
        self._keep_folders()

    def _cycle(self, requests: Sequence[Request]) -> None:
        now, undone = self.now(), self.database.rollbacks
        asking = self._take_in(requests, now)
        for hosted in list(self.hosted.values()):
            self._guarded(hosted, lambda h: h.tick(now))
        self._place(asking, now)
        self._let_go(now)
        for hosted in self.hosted.values():
            hosted.write_history()
        if now - self._seen_saved_at > _SAVE_SEEN_S:
            self._seen_saved_at = now
            self.devices.save_seen()
            self.devices.forget_expired(time.time())
        if self.database.rollbacks != undone:  # somebody has caught the error of the disk
            raise RunError("the disk failed in the middle of a change; look at its room and rights")
        if self.database.connection.in_transaction:
            write_fact(self.database, "clock_s", now)
            self.database.commit()

    def _take_in(self, requests: Sequence[Request], now: float) -> dict[int, CheckIn]:
        """Carry out what was asked; who checked in."""
        asking: dict[int, CheckIn] = {}
        offers: list[Offer] = []
        for request in requests:
            if isinstance(request, CheckIn):
                self._meet(request)
                self._replace(asking, request)
            elif isinstance(request, Offer):
                offers.append(request)
            else:
                self._carry_out(request)
        self._submit(offers, asking, now)
        return asking

    def _meet(self, check_in: CheckIn) -> None:
        self.devices.seen(check_in.device, time.time())
        self.devices.count(check_in.device, check_in.counters)
        if check_in.gave_up is not None:
            given = self.now(), check_in.device, *check_in.gave_up
            for hosted in list(self.hosted.values()):
                self._guarded(hosted, lambda h: h.give_up(*given))
        if check_in.card is not None:
            self.devices.change_card(check_in.device, check_in.card, check_in.agent)

    def _replace(self, asking: dict[int, CheckIn], check_in: CheckIn) -> None:
        """A device that asks again has given up its earlier call."""
        earlier = asking.get(check_in.device)
        parked = self.parked.pop(check_in.device, None)
        for old in (earlier, parked.check_in if parked else None):
            if old is not None:
                self._reply(old, ComeBack(0.0))
        asking[check_in.device] = check_in

    def _carry_out(self, call: Call) -> None:
        try:
            self._answer(call.reply, call.function(self))
        except FedtinyError as error:
            self._answer(call.reply, error)

    # ---- updates

    def _submit(self, offers: Sequence[Offer], asking: dict[int, CheckIn], now: float) -> None:
        """Receipts for updates; whoever hands one in asks for more work at the same time."""
        by_run: dict[bytes, list[Offer]] = {}
        for offer in offers:
            if self.devices.is_revoked(offer.device):  # since the call was let in
                offer.offered = replace(offer.offered, flaw=_REVOKED)
            by_run.setdefault(offer.run, []).append(offer)
        for run, mine in by_run.items():
            receipts = self._receipts(run, [offer.offered for offer in mine], now)
            for offer, receipt in zip(mine, receipts, strict=False):
                asks = CheckIn(offer.device, offer.reply, offer.wait_s, receipt=receipt)
                self._replace(asking, asks)
            if halted := self.halted.get(run):
                for offer in mine:
                    self._answer(offer.reply, Unavailable(halted))

    def _receipts(self, run: bytes, offered: Sequence[Offered], now: float) -> Sequence[Receipt]:
        """One for each, in their order; none of a run that is halted."""
        hosted = self.by_id.get(run)
        if hosted is not None:
            return self._guarded(hosted, lambda h: h.submit(now, offered)) or ()
        return () if run in self.halted else [Receipt(o.update.lease, UNKNOWN) for o in offered]

    # ---- work for devices

    def _place(self, asking: dict[int, CheckIn], now: float) -> None:
        """Give work to devices that ask or wait; the others wait on, or come back later."""
        waiting = {d: c for d, c in asking.items() if not c.reply.cancelled()}
        for hosted in sorted(self.hosted.values(), key=lambda h: -h.demand):
            candidates = {d: self._card(d) for d in self._candidates(hosted, waiting)}
            if self.draining or not candidates:
                continue
            works = (
                self._guarded(hosted, partial(Hosted.check_ins, now=now, cards=candidates)) or {}
            )
            for device, work in works.items():
                check_in = waiting.pop(device, None) or self.parked.pop(device).check_in
                self._reply(check_in, work)
        for check_in in waiting.values():
            self._park(check_in, now)

    def _candidates(self, hosted: Hosted, waiting: dict[int, CheckIn]) -> Iterator[int]:
        """Who may get work of the run: who just came and, when there is other work, who waits."""
        elsewhere = {d for h in self.hosted.values() if h is not hosted for d in h.holds()}
        for device in waiting:
            if device not in elsewhere and not self.devices.is_revoked(device):
                yield device
        if self._occasions.get(hosted.name) != hosted.occasion:
            self._occasions[hosted.name] = hosted.occasion
            yield from [d for d, p in self.parked.items() if not p.check_in.reply.cancelled()]

    def _card(self, device: int) -> DeviceCard:
        return self.devices[device].card

    def _park(self, check_in: CheckIn, now: float) -> None:
        if self.devices.is_revoked(check_in.device):
            return self._turn_away(check_in)
        answer = self._refusal(check_in.device)
        if answer is None and check_in.receipt is not None and not check_in.wait_s:
            answer = ComeBack(0.0)  # to ask, and to wait, in a call of its own
        if answer is None and check_in.wait_s > 0 and len(self.parked) < MOST_PARKED:
            until = now + check_in.wait_s
            self.parked[check_in.device] = Parked(check_in, until)
            heapq.heappush(self._timers, (until, next(self._serial), check_in.device))
            return
        self._reply(check_in, answer or self._later(check_in.device, now))

    def _turn_away(self, check_in: CheckIn) -> None:
        """To a device that was revoked: the receipt of what counts, or that it is shut out."""
        receipt = check_in.receipt
        if receipt is not None and receipt.status in (ACCEPTED, DUPLICATE):
            return self._reply(check_in, ComeBack(0.0))
        self._answer(check_in.reply, _shut_out(check_in.device))

    def _refusal(self, device: int) -> Answer | None:
        """Why waiting would not help, if so."""
        if self.over:
            return Dismissed("every run is over")
        if self.draining:
            return ComeBack(_SOON_S, "the coordinator is about to stop")
        card = self._card(device)
        reasons = [hosted.misfits(card) for hosted in self.hosted.values() if not hosted.done]
        if all(reasons):
            told = [reason for each in reasons for reason in each] + [*self.halted.values()]
            return ComeBack(_LONG_S, "; ".join(told))
        return None

    def _later(self, device: int, now: float) -> ComeBack:
        """When to ask again: as the run that opens next has it."""
        draw = rng.words(0, self.cycles & 0xFFFFFFFF, device, rng.Purpose.BACKOFF, 1)[0] / 2**32
        asking = max(len(self.parked), len(self.devices))
        times = [
            hosted.pace.after_s(now, asking, hosted.coordinator.rules.cohort, draw)
            for hosted in self.hosted.values()
            if not hosted.done
        ]
        return ComeBack(min(times, default=_SOON_S))

    def _let_go(self, now: float) -> None:
        """Answer those who have waited as long as they wanted to, or who may go."""
        over = self.draining or self.over
        while self._timers and (over or self._timers[0][0] <= now):
            until, _, device = heapq.heappop(self._timers)
            parked = self.parked.get(device)
            if parked is None or parked.until != until:
                continue
            del self.parked[device]
            # Whoever waited comes back at once, to wait again: that is how it is known to be there.
            self._reply(parked.check_in, self._refusal(device) or ComeBack(0.0))

    def _reply(self, check_in: CheckIn, answer: Answer | pb.Answer) -> None:
        """Answer a device; with its receipt, if it has handed an update in."""
        message = answer if isinstance(answer, pb.Answer) else write_answer(answer)
        self._answer(check_in.reply, (check_in.receipt, message))

    def _answer(self, reply: asyncio.Future[Any], value: Any) -> None:
        self._answers.append((reply, value))

    # ---- when something fails

    def _undo(self, requests: Sequence[Request], error: Exception) -> None:
        """Nothing of the cycle has happened: back to what the database has."""
        level = logging.ERROR if isinstance(error, FedtinyError) else logging.CRITICAL
        log.log(level, "a cycle failed: %s", error, exc_info=not isinstance(error, FedtinyError))
        told = error if isinstance(error, RunError | StrategyError) else None
        failure = Unavailable(str(told or "an internal error; see the coordinator's log"))
        pending = {id(request.reply): request.reply for request in requests}
        pending |= {id(reply): reply for reply, _ in self._answers}
        self._answers = [(reply, failure) for reply in pending.values()]
        self.parked = {d: p for d, p in self.parked.items() if id(p.check_in.reply) not in pending}
        self.failure, self._broken = str(error), True
        self._stopped.wait(_AFTER_FAILURE_S)

    def _mend(self) -> None:
        """Know again what the database has, and nothing else."""
        self.database.connection.rollback()
        self.devices.reload()
        self._reopen_runs()
        self._broken = False

    # ---- what people look at

    def _keep_folders(self) -> None:
        """Bring the folders of the runs up to what is committed."""
        if self._broken:
            return
        crash_points.reach("folder.before")
        for name, hosted in self.hosted.items():
            try:
                if name not in self._folders:
                    self._folders[name] = Folder.open(self.folder / "runs" / name, hosted)
                self._folders[name].follow(hosted)
            except RunError as error:  # it is made anew from the database in the next cycle
                log.error("the folder of %s lags behind: %s", name, error)
                self._folders.pop(name, None)
                hosted.durable.clear()
        crash_points.reach("folder.after")

    def _farewell(self) -> None:
        """Who still waits is told to come back."""
        later = write_answer(ComeBack(_SOON_S))
        deliver((parked.check_in.reply, (None, later)) for parked in self.parked.values())
        self.parked.clear()
        if not self._broken:
            self.devices.save_seen()
            write_fact(self.database, "clock_s", self.now())
            self.database.commit()


def _shut_out(device: int) -> IdentityError:
    return IdentityError("revoked", f"device {device}: {_REVOKED}")

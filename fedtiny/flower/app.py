"""A fedtiny experiment as an app of Flower's: its rounds run in a ServerApp, its devices in nodes.

    apps = make_apps(Path(__file__).with_name("experiment.toml"))
    server = apps.server
    client = apps.client

in a module whose ``server`` and ``client`` are the components of the app (Flower looks for such
lines); `flwr run` does the rest, in a folder of its own. Node K is device K (its partition-id),
simulated or a SuperNode. Who is asked and what comes of it is decided as everywhere: if every
device answers, the model is that of `fedtiny simulate`, bit for bit. Once fedtiny is imported flwr
tells nobody and asks for no updates; what starts its own commands must set FLWR_TELEMETRY_ENABLED=0
itself.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from logging import INFO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from fedtiny.errors import RunError, StrategyError, WireError
from fedtiny.experiment import Experiment, rules
from fedtiny.flower.node import DEVICE, Site, Written, introduce, visit
from fedtiny.flower.orders import Order, read_update
from fedtiny.masks import remembered
from fedtiny.rounds.coordinator import Coordinator
from fedtiny.rounds.invitation import order
from fedtiny.rounds.journal import MemoryJournal
from fedtiny.runs import RunFolder
from fedtiny.server.admission import Expected, flaw_of, shared_masks
from fedtiny.server.models import MODEL, PROGRAM
from fedtiny.values import ACCEPTED, DUPLICATE, Instruction, Lease, Update
from fedtiny.wire.codec import Due, Manifest, Work, detach, mask_name

if TYPE_CHECKING:
    from fedtiny.engine.program import Program
    from fedtiny.masks import Mask
    from fedtiny.rounds.journal import Published

_RUN_BYTES = 8
_LOOK_AGAIN_S = 1.0


class Apps(NamedTuple):
    """The two components of an app of Flower's."""

    server: ServerApp
    client: ClientApp


def make_apps(
    experiment: Experiment | Mapping[str, Any] | str | Path, out: Path | str | None = None
) -> Apps:
    """The components of an app that runs this experiment.

    Args:
        experiment: An Experiment, its tables, or its file. It is in both apps as text; what it
            names must be installed, or lie beside it, wherever a node runs.
        out: A folder for the history and the model; the model is in the ServerApp's state, too.

    Rounds are all that it runs: of [evaluate] nothing.
    """
    made = Experiment.of(experiment)
    written = Written(made.origin.name, made.text, made.folder)
    server, client = ServerApp(), ClientApp()
    server.main()(partial(_serve, written, out))
    client.train()(partial(visit, written))
    client.query()(partial(introduce, written))
    return Apps(server, client)


def _serve(written: Written, out: Path | str | None, grid: Grid, context: Context) -> None:
    site = Site.of(written)
    rules.check(site.work, deployed=True)
    if site.work.strategy.asynchronous:
        raise StrategyError(
            f"{type(site.work.strategy).__name__} is asynchronous; a grid of Flower's waits for a "
            "whole cohort: take another strategy, or fedtiny coordinator"
        )
    folder = RunFolder.create(out, site.work.experiment) if out else None
    rounds = Rounds(site, grid, _nodes(site, grid), folder)
    rounds.run()
    arrays = site.work.layout.unflatten(rounds.coordinator.model)
    context.state["model"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    if folder:
        folder.save_model(rounds.coordinator.rounds.round, arrays)


def _nodes(site: Site, grid: Grid) -> dict[int, int]:
    """The node of each device that trains; waits until all of them are there."""
    nodes: dict[int, int] = {}
    wanted, until = site.fleet.training, time.monotonic() + site.work.experiment.run.deadline
    while missing := wanted.size - len(nodes):
        new = [node for node in grid.get_node_ids() if node not in nodes.values()]
        for answer in grid.send_and_receive(
            [Message(RecordDict(), node, MessageType.QUERY) for node in new]
        ):
            device = int(_content(answer).config_records[DEVICE][DEVICE])  # type: ignore[arg-type]
            nodes |= {device: answer.metadata.src_node_id} if device in wanted else {}
        if time.monotonic() > until:
            raise RunError(
                f"{missing:,} of the {wanted.size:,} devices that train have no node after "
                f"{site.work.experiment.run.deadline:g} s; start as many nodes as fleet.devices"
            )
        if len(nodes) < wanted.size:
            time.sleep(_LOOK_AGAIN_S)
    return nodes


def _content(answer: Message) -> RecordDict:
    if answer.has_error():
        raise RunError(f"node {answer.metadata.src_node_id} failed: {answer.error.reason}")
    return answer.content


@dataclass(eq=False)
class Rounds:
    """The rounds of an experiment over nodes, each of which is a device.

    The clock of the rounds shows the seconds since they began, less the ones in which nobody could
    be asked: these are passed over.
    """

    site: Site
    grid: Grid
    nodes: Mapping[int, int]
    folder: RunFolder | None = None
    coordinator: Coordinator = field(init=False)
    now: float = 0.0
    _counted: dict[int, int] = field(default_factory=dict)
    """By device, the last lease whose update has counted."""

    def __post_init__(self) -> None:
        work = self.site.work
        self.run_id = hashlib.sha256(work.experiment.digest.encode()).digest()[:_RUN_BYTES]
        self.coordinator = Coordinator(
            work.rules(work.experiment.seed), work.strategy, work.layout, work.initial,
            MemoryJournal(), self.site.fleet.training.size, self.now, self._tell, work.gate,
        )  # fmt: skip

    def run(self) -> None:
        """All of them."""
        while self.coordinator.rounds.phase != "done":
            devices = self._invited()
            if devices:
                self._ask(devices)
            else:
                self.now = max(self.now, self.coordinator.rounds.wakes_at)
                self.coordinator.tick(self.now)

    def _invited(self) -> list[int]:
        """Whom a simulated run would ask now."""
        rounds, seed = self.coordinator.rounds, self.site.work.experiment.seed
        drawn = order(seed, rounds.round, rounds.window, self.site.fleet.training)
        served = {*rounds.leases.devices.tolist(), *self.coordinator.open.barred.tolist()}
        left = (device for device in drawn.tolist() if device not in served)
        return list(islice(left, self.coordinator.demand))

    def _ask(self, devices: Sequence[int]) -> None:
        """Give out leases and wait for the answers; who gives none has given up."""
        begun = time.monotonic()
        works, _ = self.coordinator.check_ins(self.now, np.array(devices, np.int64))
        leases = {lease.device: lease for lease, _ in works.values()}
        left_s = min((lease.deadline for lease in leases.values()), default=self.now) - self.now
        told = [self._message(lease, asked) for lease, asked in works.values()]
        answers = list(self.grid.send_and_receive(told, timeout=left_s))
        self.now += time.monotonic() - begun
        updates = self._updates(answers, leases)
        flaws = {update.lease: flaw for update in updates if (flaw := self._flaw(update))}
        receipts = self.coordinator.submit(self.now, updates, flaws)
        counted = {r.lease for r in receipts if r.status in (ACCEPTED, DUPLICATE)}
        self._counted |= {u.device: u.lease for u in updates if u.lease in counted}
        silent = {lease.id for lease in leases.values()} - {update.lease for update in updates}
        self.coordinator.give_up(self.now, sorted(silent))

    def _message(self, lease: Lease, asked: Instruction) -> Message:
        program = self._program(lease.device)
        model = self.coordinator.fetch(lease.version)
        instruction, blobs = detach(asked.of(program.density))
        digest, image = hashlib.sha256(model).digest(), program.image
        work = Work(
            self.run_id, self.site.work.experiment.seed, lease, lease.deadline - self.now,
            instruction,
            Manifest(PROGRAM, 0, len(image), bytes.fromhex(program.digest)),
            Manifest(MODEL, lease.version, len(model), digest),
        )  # fmt: skip
        content = Order(work, model, self._counted.get(lease.device, -1)).record(blobs)
        return Message(content, self.nodes[lease.device], MessageType.TRAIN)

    def _program(self, device: int) -> Program:
        fleet = self.site.fleet
        program = fleet.profiles[int(fleet.profile[device])].program
        assert program is not None
        return program

    def _updates(self, answers: Iterable[Message], leases: Mapping[int, Lease]) -> list[Update]:
        """What came back on the leases; what cannot be read is none."""
        asked, of_node = self.coordinator.open, {node: d for d, node in self.nodes.items()}
        seed, round = self.site.work.experiment.seed, asked.round.t
        masks = {mask_name(blob): self._mask(blob) for _, blob in asked.instruction.masks}
        masks |= shared_masks(asked.instruction, seed, [round], asked.size)
        layout = self.site.work.layout if asked.instruction.grow else None
        due, updates = Due(asked.size, 2**31 - 1, masks, layout), []
        for answer in answers:
            device = of_node[answer.metadata.src_node_id]
            try:
                update = read_update(_content(answer), due)
            except (RunError, WireError) as error:
                log(INFO, "device %s gave nothing: %s", device, error)
                continue
            if (update.device, update.lease) == (device, leases[device].id):
                updates.append(update)
        return updates

    def _mask(self, blob: bytes) -> Mask:
        return remembered(blob, self.site.work.layout)

    def _flaw(self, update: Update) -> str:
        asked, work = self.coordinator.open.instruction, self.site.work
        programs = filter(None, (p.program for p in self.site.fleet.profiles))
        expected = Expected.of(asked, programs, work.layout, self._mask, work.experiment.seed)
        return flaw_of(update, expected)

    def _tell(self, published: Published, leases: int) -> None:
        steps = published.measures.values().get("steps")
        loss = published.measures.mean("loss_sum", "steps") if steps else None
        row = {
            "kind": "round", "round": published.round, "time_s": self.now, "loss": loss,
            "version": published.version, "failed": published.failed, "leases": leases,
            "accepted": int(published.leases.size),
        }  # fmt: skip
        row |= {"gated": published.gated} if published.gated else {}
        log(
            INFO, "round %s: %s of %s updates, loss %s", row["round"], row["accepted"], leases, loss
        )
        if self.folder:
            self.folder.append(row)

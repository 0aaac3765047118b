"""A node of Flower's as a device of ours: what its ClientApp does with a message."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedtiny.device.learner import Key, Learner
from fedtiny.device.visit import Outcome
from fedtiny.errors import RunError
from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from fedtiny.flower.orders import KEPT, Order, read_kept, write_kept, write_update
from fedtiny.simulator.fleet import Fleet
from fedtiny.values import Kept, Update

DEVICE = "device"
_PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Written:
    """An experiment as text, and the folder of what it names: both apps make the same of it."""

    name: str
    text: str
    folder: str

    def experiment(self) -> Experiment:
        """It."""
        return Experiment.parse(self.text, self.name, self.folder)


@dataclass(frozen=True, eq=False)
class Site:
    """The parts of an experiment that a node needs, for all the devices that it may be."""

    work: Workload
    fleet: Fleet

    @classmethod
    def of(cls, written: Written) -> Site:
        """Built; a process does this once."""
        work = Workload.of(written.experiment())
        return cls(work, Fleet.of(work))

    def learner(self, device: int) -> Learner:
        """Of the Program that the device runs."""
        if not 0 <= device < self.fleet.profile.size:
            raise RunError(
                f"there is no device {device:,}: the experiment has {self.fleet.profile.size:,}; "
                "raise fleet.devices, or start fewer nodes"
            )
        program = self.fleet.profiles[int(self.fleet.profile[device])].program
        if program is None:
            raise RunError(f"device {device:,} cannot take part: no Program fits its board")
        return Learner(program)


@lru_cache(maxsize=2)
def site_of(written: Written) -> Site:
    """The site of an experiment; a process that is many nodes makes it once."""
    return Site.of(written)


def device_of(context: Context) -> int:
    """The device that a node stands for: its number among the nodes."""
    partition = context.node_config.get("partition-id")
    if partition is None:
        raise RunError(
            "the node does not say which device it is; start it with --node-config "
            "'partition-id=0', and so on"
        )
    return int(partition)


def introduce(written: Written, message: Message, context: Context) -> Message:
    """Say which device the node is."""
    content = RecordDict({DEVICE: ConfigRecord({DEVICE: device_of(context)})})
    return Message(content, reply_to=message)


def visit(written: Written, message: Message, context: Context) -> Message:
    """Carry out an order on the device's samples; what it leaves is in the node's state."""
    order, device = Order.read(message.content), device_of(context)
    site = site_of(written)
    learner = site.learner(device)
    if order.work.program.digest.hex() != learner.program.digest:
        raise RunError(
            f"device {device:,} makes another Program of the experiment "
            f"({learner.program.digest[:12]}) than was asked for; install the same fedtiny there"
        )
    done = _visited(site, learner, order, _kept(context, order.counted))
    context.state[_PENDING] = write_kept(done.kept, order.work.lease.id)
    size = order.work.instruction.floats(learner.program.layout)
    return Message(write_update(_update(order, done), order, size), reply_to=message)


def _visited(site: Site, learner: Learner, order: Order, kept: Kept) -> Outcome:
    lease, task = order.work.lease, site.work.task
    key = Key(order.work.seed, lease.round, lease.device)
    samples = cache(
        lambda part: learner.samples(*task.samples(key.run, key.round, key.device, part))
    )
    return learner.visit(order.work.instruction, order.model, samples, key, kept)


def _kept(context: Context, counted: int) -> Kept:
    """What the device has kept, with what its last visit has left if that has counted."""
    records = [context.state.config_records.get(name) for name in (_PENDING, KEPT)]
    kept, lease = read_kept([record for record in records if record is not None], counted)
    context.state[KEPT] = write_kept(kept, lease)
    return kept


def _update(order: Order, done: Outcome) -> Update:
    lease = order.work.lease
    return Update(
        lease.id, lease.device, lease.round, lease.version, done.samples, done.values, done.ranges,
        done.measures, done.mask, done.places, done.quantised,
    )  # fmt: skip

"""What a run's rounds are told, and what they tell: the events and commands of `machine`.

Columns are NumPy arrays, one entry a device or lease.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fedtiny.tensors import Float64, Int64

NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Begin:
    """The run begins with ``devices`` devices that the Program fits."""

    now: float
    devices: int


@dataclass(frozen=True, slots=True)
class CheckIns:
    """Devices that are in contact and ask for work. Answered by `Grant`; the others `ComeBack`."""

    now: float
    devices: Int64


@dataclass(frozen=True, slots=True)
class Offers:
    """Updates have arrived, in this order: who offers which lease, and from which model.

    An offer that is neither replied to nor folded is a copy of one that is being folded, or has
    come while as many are folded as the round may take (`machine.State.room`): it is offered again.
    """

    now: float
    leases: Int64
    devices: Int64
    versions: Int64


@dataclass(frozen=True, slots=True)
class Folded:
    """The contents of a `Fold` are folded and journalled, or refused, each with its reason."""

    now: float
    leases: Int64
    refused: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Committed:
    """A `Commit` is done; ``changed`` says whether there is a new model."""

    now: float
    changed: bool = True


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; due at `machine.State.wakes_at`."""

    now: float


@dataclass(frozen=True, slots=True)
class Abandon:
    """The open round is to end as failed, whatever has been accepted."""

    now: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No update will come on these leases: nobody need wait for them."""

    now: float
    leases: Int64


Event = Begin | CheckIns | Offers | Folded | Committed | Tick | Abandon | GiveUp

# ---- commands --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """A window of a round is open: ``wanted`` devices may have a lease.

    ``drop_out`` is the share of leases that is known to come to nothing.
    """

    round: int
    window: int
    wanted: int
    drop_out: float = 0.0


@dataclass(frozen=True, slots=True)
class Grant:
    """These leases are given.

    ``repeated``: they were given before, but their devices ask again: the answer was lost.
    """

    round: int
    version: int
    leases: Int64
    devices: Int64
    deadlines: Float64
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Carry:
    """These leases of rounds that are over go on: their updates may count in the next one."""

    round: int
    leases: Int64
    devices: Int64
    versions: Int64
    deadlines: Float64


@dataclass(frozen=True, slots=True)
class ComeBack:
    """Who checked in and got no lease may ask again at ``at``; at `NEVER`, the run is over."""

    at: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What the devices of these leases hear: one of the statuses of a Receipt."""

    leases: Int64
    status: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fold:
    """Check and fold the contents of these offers; say `Folded`. ``at``: their places in Offers."""

    round: int
    at: Int64
    leases: Int64
    devices: Int64


@dataclass(frozen=True, slots=True)
class Commit:
    """The round is over with these leases accepted: make the next model; say `Committed`.

    With ``failed`` too few came: the model stays, and nothing of them is used.
    """

    round: int
    leases: Int64
    failed: bool


@dataclass(frozen=True, slots=True)
class Done:
    """The last round is committed."""

    rounds: int


Command = Open | Grant | Carry | ComeBack | Reply | Fold | Commit | Done
Commands = tuple[Command, ...]

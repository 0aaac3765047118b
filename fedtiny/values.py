"""The words of fedtiny as values: what travels between its rooms. No NumPy, no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedtiny.errors import ExperimentError, StrategyError
from fedtiny.tensors import raw

if TYPE_CHECKING:
    from fedtiny.layout import Coverage, Layout, Ranges
    from fedtiny.masks import Mask
    from fedtiny.tensors import Buffer

Masks = tuple[tuple[float, bytes], ...]
"""The blob of `fedtiny.masks` for each density that the devices of a fleet have."""

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(size: int | str) -> int:
    """Bytes of "256KiB", "64 MB", "1024" or an integer.

    Raises ExperimentError when the text is not a non-negative size with a known unit.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(size))
    if isinstance(size, bool) or match is None or match[2].lower() not in _UNITS:
        raise ExperimentError(
            f"{size!r} is not a byte size; write an integer, or a number with one of "
            "B, KB, KiB, MB, MiB, GB, GiB, such as '256KiB'"
        )
    return int(float(match[1]) * _UNITS[match[2].lower()])


# ---- what a Program is, and a device ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sgd:
    """Hyper-parameters of gradient descent besides the learning rate; 0 means "not used".

    g is clipped to global norm ``clip``, then g += weight_decay * w + prox * (w - base) + c, with
    c a correction vector; v = momentum * v + g; w -= lr * v. At compile time a non-zero entry
    reserves the memory that it needs; ``gradient`` reserves it for returning the last gradient.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float = 0.0
    prox: float = 0.0
    correction: bool = False
    gradient: bool = False


@dataclass(frozen=True, slots=True)
class Footprint:
    """A Program seen from outside: its digest, and what it costs.

    ``macs_per_growth`` is a step that looks for the largest gradients of dead coordinates, too;
    ``macs_per_features`` are the forward passes that show all inputs of the last layer.
    """

    program: str
    layout: str
    ram_bytes: int
    flash_bytes: int
    macs_per_step: int
    macs_per_forward: int
    batch: int
    macs_per_growth: int = 0
    macs_per_features: int = 0


@dataclass(frozen=True, slots=True)
class DeviceCard:
    """What one device can do; the RAM and flash are those free for fedtiny."""

    profile: str
    ram_bytes: int
    flash_bytes: int
    macs_per_s: float
    downlink_bps: float
    uplink_bps: float
    runtime_version: int = 1
    sensors: tuple[str, ...] = ()


# ---- what a device is asked to do ------------------------------------------------------------

SUPPORT, QUERY = "support", "query"


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of training in a visit.

    ``steps`` batches of the ``part`` of the device's data; 0 means one pass, rounded up to whole
    batches. ``groups`` names the parameter groups that train; empty means all that the Program
    trains. Samples are taken in order and around again, or in a new order each epoch (``shuffle``).

    With ``ahead`` every step takes two batches: its gradient is that of the second one, where a
    step of this learning rate on the first one has led (first-order MAML).
    """

    lr: float
    steps: int = 0
    part: str = SUPPORT
    groups: tuple[str, ...] = ()
    shuffle: bool = False
    sgd: Sgd = field(default_factory=Sgd)
    corrected: bool = False
    ahead: float = 0.0

    @property
    def batches(self) -> int:
        """Batches that a step takes."""
        return 2 if self.ahead else 1

    def steps_on(self, count: Any, batch: int) -> Any:
        """Steps over so many samples: a number, or a column of them."""
        return self.steps or -(-count // (batch * self.batches))


TRAIN, EVALUATE, CALIBRATE, SCORE, SUMS = "train", "evaluate", "calibrate", "score", "sums"
VALUES, GRADIENT, VOTES = "values", "gradient", "votes"
RANGES, WIDER = "ranges", "wider"

LOCAL_VALUES, CONTROL, OWN_MODEL, RESIDUAL = "local", "control", "own", "residual"
"""What a device can keep from visit to visit: the values of its local parameters, its control
variate, a model of its own, and what its transforms have left out. float32 each."""

Kept = Mapping[str, bytes]
"""What a device has kept, by these names; what it has not kept yet is not there."""

CLASS_SUMS, PRODUCTS = "classes", "products"


@dataclass(frozen=True, slots=True)
class FeatureSums:
    """Sums over samples of the features f of a net: the D inputs of its last layer, ``head``.

    ``classes``: for each of C classes the sum of f, then the number of samples of each class.
    ``products``: with g = (f, 1), the upper triangle of the sum of g g^T, row by row; then for each
    class the sum of g.
    """

    head: str
    form: str = CLASS_SUMS

    def floats(self, layout: Layout) -> int:
        """How many there are."""
        features, classes = layout[self.head].shape
        if self.form == CLASS_SUMS:
            return classes * (features + 1)
        return (features + 1) * (features + 2) // 2 + classes * (features + 1)

    def passes(self, layout: Layout) -> int:
        """How often the samples go through the net: its outputs show C features at a time."""
        features, classes = layout[self.head].shape
        return -(-features // classes)


@dataclass(frozen=True, slots=True)
class Transform:
    """One step between a delta and what is sent of it: see `fedtiny.transforms`."""

    name: str
    figure: float = 0.0


@dataclass(frozen=True, slots=True)
class Instruction:
    """What one round asks of a device.

    * ``train``: run the phases; return the trained values, or the gradient of the last step
      (``returns``; its phase then has one step, and nothing that was trained before it is sent).
    * ``evaluate``: measure on the query, run the phases, measure again; return counts and sums.
    * ``calibrate``: moments of every named tensor over the part's samples. With candidates: for
      each one a row of values, for each normalisation that tracks its statistics the means and
      then the mean squares of its input, channel by channel.
      With returns = "ranges": of each range of the layout the least and the greatest value that it
      is of, the means over batches, and as far again. Programs that hold activations as int8 send
      none; with returns = "wider" they do, by the ranges that they have.
    * ``score``: the loss of each candidate; with ``statistics`` (float32, a row for each, as
      calibrated) in place of those that the candidate has: a variance is the mean square less the
      square of the mean, at least 0.

    A candidate is a vector, or a number: for a dense Program the seed of initial values, for a
    pruned one that of a mask over the base (`fedtiny.pruning.candidate_counts`).

    ``masks`` holds the mask of each density; what a device gets is `of` its own. ``grow`` names
    pruned parameters, and how many of their dead coordinates a device is to find: those with the
    largest gradients, of one batch. With returns = "gradient" it sends them, with "votes" their
    places alone. With "values" it lets them live in place of as many of its smallest live weights
    before it trains the last phase, and returns the values with its own mask.

    ``sums``: return these FeatureSums of the part's samples.

    What a device keeps: with ``control`` its correction is that of the instruction less its own
    control variate c_k, which becomes ``c_k - c + (x - y) / (K lr)`` (SCAFFOLD, option II). ``own``
    are phases in which it trains a model of its own after the shared one, held near that by their
    proximal term (Ditto); what it then predicts with is its own model.

    With ``transforms`` it sends what they make of its delta, in their order, not its values.
    """

    kind: str = TRAIN
    phases: tuple[Phase, ...] = ()
    returns: str = VALUES
    part: str = SUPPORT
    correction: bytes | None = None
    candidates: tuple[bytes | int, ...] = ()
    masks: Masks = ()
    grow: tuple[tuple[str, int], ...] = ()
    statistics: bytes | None = None
    sums: FeatureSums | None = None
    control: bool = False
    own: tuple[Phase, ...] = ()
    transforms: tuple[Transform, ...] = ()

    def of(self, density: float) -> Instruction:
        """The same for a Program of this density: with its mask alone, or none if it is dense."""
        if not self.masks:
            return self
        own = tuple(pair for pair in self.masks if pair[0] == density)
        if density < 1 and not own:
            known = ", ".join(f"{other:g}" for other, _ in self.masks)
            raise StrategyError(
                f"there is no mask of density {density:g}; the strategy has masks of {known}: give "
                "the device one of these densities, or let masks() make one for it"
            )
        return replace(self, masks=own)

    @property
    def mask(self) -> bytes | None:
        """The blob of its only mask, if there is one."""
        return self.masks[0][1] if len(self.masks) == 1 else None

    @property
    def sends_gradient(self) -> bool:
        """Whether what comes back is no values, but a gradient or votes."""
        return self.returns in (GRADIENT, VOTES)

    @property
    def asks_ranges(self) -> bool:
        """Whether what comes back are ranges of activations."""
        return self.returns in (RANGES, WIDER)

    @property
    def pools(self) -> bool:
        """Whether what comes back are statistics of candidates, or ranges, to be pooled."""
        return self.kind == CALIBRATE and (bool(self.candidates) or self.asks_ranges)

    def floats(self, layout: Layout) -> int:
        """Coordinates of what comes back: the model's, a row of statistics a candidate, ranges, or
        sums."""
        if self.sums is not None:
            return self.sums.floats(layout)
        if self.asks_ranges:
            return 2 * len(layout.activations)
        return len(self.candidates) * layout.statistics_floats if self.pools else layout.size

    @property
    def sgd(self) -> Sgd:
        """What a Program must be compiled with to carry this out."""
        shared = [phase.sgd for phase in self.phases]
        rules = shared + [phase.sgd for phase in self.own]
        return Sgd(
            momentum=max((r.momentum for r in rules), default=0.0),
            weight_decay=max((r.weight_decay for r in rules), default=0.0),
            clip=max((r.clip for r in rules), default=0.0),
            prox=max((r.prox for r in shared), default=0.0),
            correction=self.correction is not None or bool(self.own),
            gradient=self.returns == GRADIENT and not self.grow,
        )

    def used(self, counts: Mapping[str, Any], batch: int) -> tuple[Any, Any]:
        """Training steps of a visit, and samples that it trains on (each counted once); those of
        the device's own model are not among them.

        ``counts`` gives the samples of each part: a number, or a column of them.
        """
        steps: Any = 0
        taken: dict[str, Any] = {}
        for phase in self.phases:
            own = phase.steps_on(counts[phase.part], batch)
            steps = steps + own
            taken[phase.part] = taken.get(phase.part, 0) + own * phase.batches * batch
        return steps, sum(_least(wanted, counts[part]) for part, wanted in taken.items())

    def macs(self, counts: Mapping[str, Any], footprint: Footprint) -> Any:
        """Multiply-accumulates of a visit: those of its training steps and of what it measures.

        ``counts`` as in `used`.
        """
        batches: Any = 0
        for phase in (*self.phases, *self.own):
            steps = phase.steps_on(counts[phase.part], footprint.batch)
            batches = batches + steps * phase.batches
        judged = self._judged(counts, footprint.batch)
        each = footprint.macs_per_features if self.kind == SUMS else footprint.macs_per_forward
        macs = batches * footprint.macs_per_step + judged * each
        if self.grow:  # its batch is the last step, or one more where that has trained
            macs += footprint.macs_per_growth - footprint.macs_per_step * self.sends_gradient
        return macs

    def _judged(self, counts: Mapping[str, Any], batch: int) -> Any:
        """Batches that a visit measures."""
        candidates = len(self.candidates)
        passes = {
            EVALUATE: 1 + bool(self.phases), CALIBRATE: max(1, candidates), SCORE: candidates,
            SUMS: 1,
        }  # fmt: skip
        if self.kind not in passes:
            return 0
        part = QUERY if self.kind == EVALUATE else self.part
        return passes[self.kind] * -(-counts[part] // batch)


def _least(a: Any, b: Any) -> Any:
    """The smaller one, of two numbers or of two columns."""
    return a - (a > b) * (a - b)


_ORDINAL_BITS = 32


def lease_id(round: int, ordinal: Any) -> Any:
    """``round * 2^32 + ordinal``, unique within a run; of a number, or of a column of them."""
    return (round << _ORDINAL_BITS) + ordinal


def round_of(lease: Any) -> Any:
    """The round of a lease's id."""
    return lease >> _ORDINAL_BITS


def ordinal_of(lease: Any) -> Any:
    """The place of a lease among those of its round."""
    return lease & ((1 << _ORDINAL_BITS) - 1)


@dataclass(frozen=True, slots=True)
class Lease:
    """A device's right to do one instruction, until its deadline (seconds); `lease_id`."""

    id: int
    device: int
    round: int
    version: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Quantised:
    """Values as small numbers: ``scale * q``, with one float32 scale for each ``block`` in a row.

    ``form`` is "int8", with a byte a value, or "sign", with a bit a value (1: +scale, 0: -scale).
    Of "grid" the scales are those of the model that the device was sent, and ``scales`` holds the
    values of the coordinates that are not int8 there.
    """

    form: str
    block: int
    scales: bytes
    q: bytes


@dataclass(frozen=True)
class Update:
    """What a device sends back.

    It trained the coordinates in ``ranges``, of those the ones that are live in ``mask`` if it has
    one. ``values`` holds float32 for these, in order; empty for kinds that send measures alone.
    With ``places`` (uint32, ascending) values are for those coordinates alone, and the others that
    it trained count as 0: they have not moved. The values of votes are 1. ``version`` is that of
    the model it started from. ``measures`` are counts and sums (``loss_sum``, ``count``, ...).
    ``quantised``: how the values travel, if not as float32; they are what it stands for.
    """

    lease: int
    device: int
    round: int
    version: int
    samples: int
    values: Buffer = b""
    ranges: Ranges = ()
    measures: Mapping[str, float] = field(default_factory=dict)
    mask: Mask | None = None
    places: bytes | None = None
    quantised: Quantised | None = None

    @property
    def coverage(self) -> Coverage:
        """What it trained."""
        return self.ranges, self.mask

    @property
    def nbytes(self) -> int:
        """Bytes of the values on the wire, before there is a wire."""
        return raw(self.values).nbytes


ACCEPTED, DUPLICATE, LATE, STALE, INVALID, UNKNOWN = (
    "accepted", "duplicate", "late", "stale", "invalid", "unknown",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a device gets for its update; only ``accepted`` and ``duplicate`` count as delivered."""

    lease: int
    status: str
    detail: str = ""

"""The Program: an image that any runtime checks and executes, and what people ask of it.

Nothing here needs NumPy: a device reads a Program with this file and `fedtiny.engine.image` alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Protocol

from fedtiny import rng
from fedtiny.engine.image import (
    FEATURES,
    I8,
    IN,
    RANGE,
    RELU6,
    WHOLE,
    ParamRecord,
    Tables,
    read_image,
)
from fedtiny.errors import DataError, ImageError
from fedtiny.layout import LOCAL, UNSENT, Layout, Ranges, merge_ranges
from fedtiny.layout import RANGE as SUFFIX
from fedtiny.quantised import LEAST, extent
from fedtiny.tensors import floats, has_numpy, vector, zeros
from fedtiny.values import TRAIN, FeatureSums, Footprint, Instruction, Phase, Sgd

if TYPE_CHECKING:
    from fedtiny.layout import Parameter
    from fedtiny.tensors import Buffer, Float32, Vector

RAM_PARTS = ("parameters", "arena", "state", "sample", "stack", "reserve", "base", "kept")
"""What a device's RAM holds; ``PART_bytes`` are keys of a Program's report."""
MARGIN = 2.0
"""Training moves activations: a range holds so many times what was observed of one."""


def ram_parts(report: Mapping[str, int]) -> dict[str, int]:
    """The bytes of each part that the report has."""
    return {part: report[f"{part}_bytes"] for part in RAM_PARTS if f"{part}_bytes" in report}


# ---- running ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hyper:
    """The hyper-parameters of one phase, as a runtime takes them. ``groups`` is a bit mask;
    ``keep_statistics`` leaves the running statistics of tracked normalisations as they are."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float = 0.0
    prox: float = 0.0
    groups: int = 0xFFFFFFFF
    correction: bool = False
    keep_statistics: bool = False


def check_hyper(tables: Tables, hyper: Hyper) -> None:
    """ImageError if the hyper-parameters need what the Program has no memory for."""
    for name, bit in FEATURES.items():
        value = getattr(hyper, name)
        if value and not tables.features & bit:
            raise ImageError(
                f"the phase uses {name} = {value}, for which the Program reserved no memory; "
                f"compile it with sgd=Sgd({name}=...)"
            )


def check_mask_bytes(tables: Tables, bits: bytes) -> None:
    """DataError unless the mask has one bit for each coordinate."""
    wanted = -(-tables.vector_floats // 8)
    if len(bits) != wanted:
        raise DataError(
            f"the mask has {len(bits)} B; one of {tables.vector_floats} coordinates has {wanted} B"
        )


def check_capacity(tables: Tables, live: int) -> None:
    """DataError if more weights are live than the Program has memory for."""
    if live > tables.live_capacity:
        raise DataError(
            f"the mask has {live:,} live weights and the Program memory for "
            f"{tables.live_capacity:,}; send the mask of its density, or compile with a higher one"
        )


def check_growth(tables: Tables, most: Sequence[int]) -> None:
    """DataError if a growth names too many parameters or places."""
    if len(most) != tables.n_pruned or sum(most) > tables.bucket:
        raise DataError(
            f"a growth of {sum(most):,} places in {len(most)} parameters; the Program has "
            f"{tables.n_pruned} and memory for {tables.bucket:,}; ask for fewer, or compile with "
            f"bucket={sum(most)}"
        )


def check_ranges(program: Program, values: Buffer) -> None:
    """DataError unless int8 can tell the values of every activation from each other."""
    for p in program.range_parameters:
        lo, hi = floats(values)[p.offset : p.offset + p.size]
        if not LEAST <= extent(lo, hi) < math.inf:
            raise DataError(
                f"the output of {p.layer} has no range ({lo:g} to {hi:g}): calibrate the model "
                "on samples of its task before it is trained or used as int8"
            )


def check_labels(tables: Tables, labels: Iterable[int]) -> None:
    """DataError if a label is none of the Program's classes."""
    classes = math.prod(tables.tensors[tables.output].shape[1:])
    wrong = next((label for label in labels if not 0 <= label < classes), None)
    if wrong is not None:
        raise DataError(
            f"the label {wrong} is none of the {classes} classes 0 to {classes - 1} of this "
            "Program; relabel the samples, or compile a model with more outputs",
            public=f"a label is none of the {classes} classes 0 to {classes - 1} of this Program",
        )


@dataclass(slots=True)
class Moments:
    """Count, sum, sum of squares, least and greatest value of one tensor's elements."""

    count: int = 0
    sum: float = 0.0
    sum_squares: float = 0.0
    min: float = float("inf")
    max: float = float("-inf")


class Executor(Protocol):
    """A runtime that holds one Program with its memory. Buffers are flat float32 (labels int32).

    Of a Program with a pool, whatever is loaded and stored as an averaged vector touches live
    coordinates alone; the compact vector holds their values alone, ascending.
    """

    def load_mask(self, bits: bytes) -> None:
        """Make the coordinates of these bits live, as far as they can be pruned; their values
        become 0. Bit i of the averaged vector is bit i mod 8 of byte i div 8.

        Raises DataError when they are more than the Program's capacity.
        """

    def load(self, vector: Buffer) -> None:
        """Take the averaged vector; remember it as the base; clear the momentum."""

    def load_live(self, values: Buffer) -> None:
        """The same, of a compact vector."""

    def store_live(self) -> bytearray:
        """The compact vector."""

    def load_correction(self, vector: Buffer) -> None:
        """Take the linear correction, in the order of the averaged vector."""

    def seed(self, run: int, round: int, device: int) -> None:
        """Whose visit this is: what the rounding of int8 weights is drawn by, from its first step.
        The steps are counted from 0 again, as they are after a load."""

    def clear_momentum(self) -> None:
        """Forget the momentum."""

    def step(self, x: Buffer, y: Buffer, hyper: Hyper) -> float:
        """Train on one batch; returns its mean loss before the update."""

    def predict(self, x: Buffer) -> memoryview[float]:
        """The output of one batch."""

    def evaluate(self, x: Buffer, y: Buffer, valid: int) -> tuple[float, int, int]:
        """Sum of losses, count, correct answers over the first ``valid`` samples of one batch."""

    def calibrate(self, x: Buffer, valid: int) -> list[Moments]:
        """The moments of every forward op's output over the first ``valid`` samples."""

    def observe(self, x: Buffer) -> list[float]:
        """Of one whole batch, normalised by its own statistics: for each tracked normalisation the
        sums of its input by channel, then the sums of squares."""

    def grow(self, x: Buffer, y: Buffer, most: Sequence[int]) -> list[tuple[int, float]]:
        """The dead coordinates with the largest gradients of one batch, ascending, each with its
        gradient; of each pruned parameter at most so many. Moves nothing."""

    def store(self) -> bytearray:
        """The averaged vector; coordinates without a parameter, or dead, are 0."""

    def store_gradient(self) -> bytearray:
        """The momentum in the order of the averaged vector: the last gradient after a step with
        lr = 0 and momentum = 0."""


@dataclass(frozen=True)
class Program:
    """A compiled model: what a device trains, in which memory, and how.

    ``image`` is what travels; everything else is derived from it. ``start`` holds the values, by
    parameter, that a model brings with it: what is trained starts from them.
    """

    image: bytes = field(repr=False)
    start: Mapping[str, Float32] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def tables(self) -> Tables:
        """The tables of the image."""
        return read_image(self.image)

    @cached_property
    def layout(self) -> Layout:
        """What is averaged."""
        layout = Layout.from_json(self.tables.card["layout"])
        if layout.digest != self.tables.layout_digest:
            raise ImageError("the image's card and header name different layouts")
        return layout

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the image: the Program's name everywhere."""
        return hashlib.sha256(self.image).hexdigest()

    @property
    def batch(self) -> int:
        """Samples per step."""
        return self.tables.batch

    @property
    def loss(self) -> str:
        """``mse``, ``cross_entropy`` or ``soft_cross_entropy``."""
        return str(self.tables.card["loss"])

    @property
    def sgd(self) -> Sgd:
        """The hyper-parameters it was compiled with: the defaults of a Learner."""
        return Sgd(**self.tables.card["sgd"])

    @property
    def axes(self) -> tuple[int, ...]:
        """Axis i of a sample as the device stores it is axis ``axes[i]`` of the model's; empty if
        the order is the same."""
        return tuple(self.tables.card["axes"])

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one input sample, as the model takes it."""
        stored = self.tables.tensors[self.tables.input].shape[1:]
        return tuple(stored[self.axes.index(i)] for i in range(len(self.axes))) or stored

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample's output."""
        return self.tables.tensors[self.tables.output].shape[1:]

    @property
    def forward_names(self) -> tuple[str, ...]:
        """The names of the tensors that the forward ops produce: what `calibrate` measures."""
        return tuple(self.tables.card["forward"])

    @property
    def trained_names(self) -> tuple[str, ...]:
        """The names of the parameters that the plan trains, whole or some of their channels."""
        return tuple(self.trained_ranges)

    @cached_property
    def trained_ranges(self) -> Mapping[str, Ranges]:
        """Of each parameter that the plan trains, the coordinates that it does."""
        overlays = {p.vector_at: p for p in self.tables.params if p.axis != WHOLE}
        found: dict[str, Ranges] = {}
        for p, record in self._parameters:
            if p.offset in overlays:
                found[p.name] = self._channel_ranges(p, overlays[p.offset])
            elif record.trained:
                found[p.name] = ((p.offset, p.offset + p.size),)
        return found

    @property
    def density(self) -> float:
        """The share of the prunable weights that are live at most; 1 if all are stored."""
        return float(self.tables.card.get("density", 1.0))

    @property
    def capacity(self) -> int:
        """How many weights the pool holds; 0 without one."""
        return self.tables.live_capacity

    @cached_property
    def prunable(self) -> tuple[str, ...]:
        """The parameters that a density prunes, in the order of the layout."""
        tensors = self.tables.prunable
        return tuple(
            p.name for p, record in self._parameters
            if record.tensor in tensors and p.group not in UNSENT
        )  # fmt: skip

    @cached_property
    def head(self) -> str:
        """The weight of the linear layer whose outputs are the Program's; "" without one."""
        own = (p.name for p, record in self._parameters if record.tensor == self.tables.head)
        return next(own, "")

    @cached_property
    def int8_parameters(self) -> tuple[Parameter, ...]:
        """The weights that are held as int8."""
        tensors = self.tables.tensors
        return tuple(p for p, record in self._parameters if tensors[record.tensor].dtype == I8)

    @cached_property
    def range_parameters(self) -> tuple[Parameter, ...]:
        """The ranges by which activations are held as int8."""
        return tuple(p for p, record in self._parameters if record.form == RANGE)

    def widened(self, extremes: Sequence[float], now: Sequence[float] = ()) -> Iterator[float]:
        """The ranges, lo and hi in turn, for activations that run from these least to these
        greatest values: `MARGIN` times as far, but not beyond what the layer can give. That of the
        input stays, since nothing that trains stands before it.

        int8 shows no more than the ranges of the model ``now``; one that ends at exactly 6 is that
        of a relu6, which an int8 Program no longer tells.
        """
        codes = dict(zip(self.forward_names, self.tables.forward, strict=True))
        for at, p in enumerate(self.layout.activations):
            op, (lo, hi) = codes.get(p.name.removesuffix(SUFFIX)), extremes[2 * at : 2 * at + 2]
            margin = MARGIN if op else 1.0
            six = op and (now[p.offset + 1] == 6.0 if self.range_parameters else op.code == RELU6)
            yield from (margin * lo, min(margin * hi, 6.0) if six else margin * hi)

    @cached_property
    def tracked(self) -> tuple[str, ...]:
        """The running statistics, a mean and a variance for each tracked normalisation."""
        names = {record.tensor: p.name for p, record in self._parameters}
        return tuple(names[tensor] for tensor in self.tables.tracked)

    @property
    def statistics_floats(self) -> int:
        """How many floats those are."""
        return self.tables.statistics_floats

    @cached_property
    def _parameters(self) -> list[tuple[Parameter, ParamRecord]]:
        wholes = [record for record in self.tables.params if record.axis == WHOLE]
        return list(zip(self.layout.parameters, wholes, strict=True))

    def _channel_ranges(self, p: Parameter, overlay: ParamRecord) -> Ranges:
        """The coordinates of the channels that an overlay of the parameter holds."""
        inner = p.shape[-1] if overlay.axis == IN else 1
        row = inner * p.shape[-2 if overlay.axis == IN else -1]
        runs = merge_ranges((i, i + 1) for i in self.tables.channels(overlay))
        return tuple(
            (at + inner * start, at + inner * stop)
            for at in range(p.offset, p.offset + p.size, row)
            for start, stop in runs
        )

    @cached_property
    def local_ranges(self) -> Ranges:
        """The coordinates that stay on the device."""
        return self.layout.ranges(p.name for p in self.layout.parameters if p.group == LOCAL)

    def sent_ranges(self, instruction: Instruction) -> Ranges:
        """The coordinates that a train instruction sends back: trained and not local."""
        return _sent_ranges(self, instruction)

    def report(self) -> dict[str, int]:
        """Byte figures that add up, and multiply-accumulates.

        ``ram_bytes`` = parameters + arena + state + sample + stack + reserve, and the dense base
        of a pruned Program that has room for one; ``flash_bytes`` = image + runtime + frozen, the
        parameters that do not train. With a pool also ``live_values``, the ``index_bytes`` among
        those of the parameters, and the ``bucket_bytes`` among those of the state.
        """
        return dict(self.tables.card["report"])

    @cached_property
    def footprint(self) -> Footprint:
        """The Program as the matching of Programs and devices sees it."""
        report = self.report()
        return Footprint(
            self.digest, self.tables.layout_digest, report["ram_bytes"], report["flash_bytes"],
            report["macs_per_step"], report["macs_per_forward"], self.batch,
            macs_per_features=self._passes * report["macs_per_forward"],
        )  # fmt: skip

    @property
    def _passes(self) -> int:
        """Forward passes that show all inputs of the last layer."""
        return FeatureSums(self.head).passes(self.layout) if self.head else 0

    def hyper(self, phase: Phase) -> Hyper:
        """A phase's hyper-parameters in the runtime's form."""
        sgd, groups = phase.sgd, self.layout.groups
        unknown = set(phase.groups) - set(groups)
        if unknown:
            raise ImageError(f"the phase trains the groups {sorted(unknown)}; there are {groups}")
        mask = sum(1 << groups.index(g) for g in phase.groups) if phase.groups else 0xFFFFFFFF
        return Hyper(
            phase.lr, sgd.momentum, sgd.weight_decay, sgd.clip, sgd.prox, mask, phase.corrected
        )

    def initial(self, seed: int) -> Vector:
        """The values to start from: the model's own; else a constant, or uniform numbers of the
        seed within +-1/sqrt(fan-in), as torch's layers."""
        names = (p.name for p in self.layout.parameters)
        initial = dict(zip(names, self.tables.card["initial"], strict=True))
        return initial_values(self.layout, initial, self.start, seed)


@lru_cache(maxsize=16)
def _sent_ranges(program: Program, instruction: Instruction) -> Ranges:
    if instruction.kind != TRAIN:
        return ()
    layout = program.layout
    groups = {g for p in instruction.phases for g in p.groups or layout.groups}.difference(UNSENT)
    trained = program.trained_ranges.items()
    return merge_ranges(
        pair for name, ranges in trained if layout[name].group in groups for pair in ranges
    )


# ---- where it starts -------------------------------------------------------------------------


def initial_values(
    layout: Layout,
    initial: Mapping[str, tuple[str, float]],
    start: Mapping[str, Float32],
    seed: int,
) -> Vector:
    """Those of a Program, or of a net's graph, which gives the same."""
    made = zeros(layout.size)
    for index, p in enumerate(layout.parameters):
        brought = start.get(p.name)
        values = _initial(seed, index, p.size, *initial[p.name]) if brought is None else brought
        made[p.offset : p.offset + p.size] = floats(values)
    return vector(made)


def _initial(seed: int, index: int, count: int, how: str, value: float) -> memoryview[float]:
    if how == "constant":
        return floats([value] * count)
    return _uniform(seed, index, count, value)


def _uniform(seed: int, index: int, count: int, bound: float) -> memoryview[float]:
    """``count`` float32 uniform in [-bound, bound) of stream ``index``."""
    if has_numpy():
        import numpy as np

        from fedtiny import draws

        words = draws.words(seed, 0, np.array([index], np.uint32), rng.Purpose.INIT, count)
        return floats(draws.uniform(words, -bound, bound))
    plain = rng.words(seed, 0, index, rng.Purpose.INIT, count)
    return floats([rng.uniform(word, -bound, bound) for word in plain])

"""The Program: an image that any runtime checks and executes, and what people ask of it.

The image is little-endian: a header, the tensor, parameter and op tables (struct for struct those
of ``runtime/ft_runtime.h``), and a JSON card with names and figures, which the runtimes ignore.
Nothing here needs NumPy: a device reads a Program with this file alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fedtiny import rng
from fedtiny.errors import DataError, ImageError
from fedtiny.tensors import floats, has_numpy, vector, zeros
from fedtiny.values import LOCAL, TRAIN, UNSENT, Footprint, Instruction, Layout, Phase, Ranges, Sgd

if TYPE_CHECKING:
    from fedtiny.tensors import Buffer, Float32, Vector
    from fedtiny.values import Parameter

MAGIC, VERSION, HEADER_BYTES, CHECKSUM_AT = b"FTI1", 2, 128, 12
NONE = 0xFFFF
ALWAYS = 0xFF
MOMENTUM, CLIP, PROX, CORRECTION = 1, 2, 4, 8
FEATURES = {"momentum": MOMENTUM, "clip": CLIP, "prox": PROX, "correction": CORRECTION}
"""The hyper-parameters that need memory (or ops) of their own, and their bits in an image."""
ARENA, PARAMS, INPUT, LABELS = 0, 1, 2, 3
MAX_IMAGE_BYTES = 1 << 24

_HEADER = struct.Struct("<4sHHII32sIIIII10H5I20x")
_TENSOR = struct.Struct("<4B5I")
_PARAM = struct.Struct("<HBBIII8x")
_OP = struct.Struct("<4B8H10H")


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One row of the tensor table. ``offset`` in bytes of its region."""

    dtype: int
    region: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class ParamRecord:
    """One row of the parameter table. ``vector_at``, ``count``, ``state_at`` in floats."""

    tensor: int
    group: int
    trained: bool
    vector_at: int
    count: int
    state_at: int


@dataclass(frozen=True, slots=True)
class OpRecord:
    """One row of the op table. ``attributes``: the index of the parameter that an update moves,
    then the words of the op's own."""

    code: int
    tensors: tuple[int, ...]
    group: int = ALWAYS
    attributes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Tables:
    """Everything in an image but its envelope."""

    arena_bytes: int
    param_floats: int
    state_floats: int
    trained_floats: int
    vector_floats: int
    n_forward: int
    batch: int
    features: int
    input: int
    label: int
    output: int
    loss: int
    tensors: tuple[TensorRecord, ...]
    params: tuple[ParamRecord, ...]
    ops: tuple[OpRecord, ...]
    layout_digest: str
    card: Mapping[str, Any]


# ---- writing ---------------------------------------------------------------------------------


def write_image(tables: Tables) -> bytes:
    """The image of the tables, with its checksum."""
    body = [_pack_tensor(t) for t in tables.tensors], [_pack_param(p) for p in tables.params]
    sections = [*map(b"".join, body), b"".join(map(_pack_op, tables.ops))]
    card = json.dumps(tables.card, separators=(",", ":")).encode()
    starts = [HEADER_BYTES]
    for section in sections:
        starts.append(starts[-1] + len(section))
    image_bytes = starts[-1] + len(card)
    counts = (len(tables.tensors), len(tables.params), len(tables.ops), tables.n_forward)
    ends = (tables.input, tables.label, tables.output, tables.loss)
    header = _HEADER.pack(
        MAGIC, VERSION, HEADER_BYTES, image_bytes, 0, bytes.fromhex(tables.layout_digest),
        tables.arena_bytes, tables.param_floats, tables.state_floats, tables.trained_floats,
        tables.vector_floats, *counts, tables.batch, tables.features, *ends, *starts, len(card),
    )  # fmt: skip
    return with_checksum(b"".join([header, *sections, card]))


def with_checksum(image: bytes) -> bytes:
    """The image with the checksum that its bytes need."""
    crc = zlib.crc32(image[CHECKSUM_AT + 4 :])
    return image[:CHECKSUM_AT] + struct.pack("<I", crc) + image[CHECKSUM_AT + 4 :]


def _pack_tensor(t: TensorRecord) -> bytes:
    dims = (*t.shape, 1, 1, 1, 1)[:4]
    return _TENSOR.pack(t.dtype, t.region, len(t.shape), 0, t.offset, *dims)


def _pack_param(p: ParamRecord) -> bytes:
    return _PARAM.pack(p.tensor, p.group, p.trained, p.vector_at, p.count, p.state_at)


def _pack_op(op: OpRecord) -> bytes:
    tensors = (*op.tensors, *[NONE] * 8)[:8]
    return _OP.pack(op.code, op.group, 0, 0, *tensors, *(*op.attributes, *[0] * 10)[:10])


# ---- reading ---------------------------------------------------------------------------------


def read_image(image: bytes) -> Tables:
    """The tables of an image whose envelope is sound.

    This checks the envelope (sizes, magic, version, checksum, table bounds); the rules of the ops
    are checked by the runtime's ``ft_check`` and by the reference executor.

    Raises ImageError saying what is wrong, with the numbers.
    """
    h = _read_header(image)
    sections = (
        (h.tensors_at, h.n_tensors, _TENSOR.size), (h.params_at, h.n_params, _PARAM.size),
        (h.ops_at, h.n_ops, _OP.size), (h.card_at, h.card_bytes, 1),
    )  # fmt: skip
    for start, count, size in sections:
        if start < HEADER_BYTES or start + count * size > len(image):
            raise ImageError(f"a table of {count} rows at byte {start} leaves {len(image)} bytes")
    shared = {f.name: getattr(h, f.name) for f in fields(Tables) if f.name in h._fields}
    rows: dict[str, Any] = {
        "tensors": tuple(map(_read_tensor, _rows(image, _TENSOR, h.tensors_at, h.n_tensors))),
        "params": tuple(ParamRecord(*row) for row in _rows(image, _PARAM, h.params_at, h.n_params)),
        "ops": tuple(map(_read_op, _rows(image, _OP, h.ops_at, h.n_ops))),
    }
    card = _read_card(image[h.card_at : h.card_at + h.card_bytes])
    return Tables(**shared, **rows, layout_digest=h.layout.hex(), card=card)


class _Header(NamedTuple):
    """The header, field for field."""

    magic: bytes
    version: int
    header_bytes: int
    image_bytes: int
    crc32: int
    layout: bytes
    arena_bytes: int
    param_floats: int
    state_floats: int
    trained_floats: int
    vector_floats: int
    n_tensors: int
    n_params: int
    n_ops: int
    n_forward: int
    batch: int
    features: int
    input: int
    label: int
    output: int
    loss: int
    tensors_at: int
    params_at: int
    ops_at: int
    card_at: int
    card_bytes: int


def _read_header(image: bytes) -> _Header:
    if len(image) < HEADER_BYTES:
        raise ImageError(f"an image has at least {HEADER_BYTES} bytes; this one has {len(image)}")
    h = _Header(*_HEADER.unpack_from(image))
    if h.magic != MAGIC:
        raise ImageError(f"this is not a Program image: it starts with {h.magic!r}, not {MAGIC!r}")
    if h.version != VERSION or h.header_bytes != HEADER_BYTES:
        raise ImageError(
            f"the image has version {h.version}, this runtime reads {VERSION}; "
            "compile the model again, or update fedtiny"
        )
    if h.image_bytes != len(image) or h.image_bytes > MAX_IMAGE_BYTES:
        raise ImageError(
            f"the image says {h.image_bytes} bytes and has {len(image)}; fetch it again"
        )
    actual = zlib.crc32(image[CHECKSUM_AT + 4 :])
    if h.crc32 != actual:
        raise ImageError(f"its checksum is {actual:08x}, not {h.crc32:08x}; fetch it again")
    return h


def _rows(image: bytes, record: struct.Struct, start: int, count: int) -> Iterator[tuple[Any, ...]]:
    return record.iter_unpack(image[start : start + count * record.size])


def _read_tensor(row: tuple[int, ...]) -> TensorRecord:
    dtype, region, ndim, _, offset, *dims = row
    return TensorRecord(dtype, region, tuple(dims[:ndim]), offset)


def _read_op(row: tuple[int, ...]) -> OpRecord:
    code, group, _, _, *rest = row
    used = max((i + 1 for i, t in enumerate(rest[:8]) if t != NONE), default=0)
    return OpRecord(code, tuple(rest[:used]), group, tuple(rest[8:]))


def _read_card(text: bytes) -> dict[str, Any]:
    try:
        card = json.loads(text)
    except ValueError as error:
        raise ImageError(f"the image's card is not JSON: {error}") from error
    if not isinstance(card, dict):
        raise ImageError("the image's card is not a JSON object")
    return card


# ---- running ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hyper:
    """The hyper-parameters of one phase, as a runtime takes them. ``groups`` is a bit mask."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float = 0.0
    prox: float = 0.0
    groups: int = 0xFFFFFFFF
    correction: bool = False


def check_hyper(tables: Tables, hyper: Hyper) -> None:
    """ImageError if the hyper-parameters need what the Program has no memory for."""
    for name, bit in FEATURES.items():
        value = getattr(hyper, name)
        if value and not tables.features & bit:
            raise ImageError(
                f"the phase uses {name} = {value}, for which the Program reserved no memory; "
                f"compile it with sgd=Sgd({name}=...)"
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
    """A runtime that holds one Program with its memory. Buffers are flat float32 (labels int32)."""

    def load(self, vector: Buffer) -> None:
        """Take the averaged vector; remember it as the base; clear the momentum."""

    def load_correction(self, vector: Buffer) -> None:
        """Take the linear correction, in the order of the averaged vector."""

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

    def store(self) -> bytearray:
        """The averaged vector; coordinates without a parameter are 0."""

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
        """The names of the parameters that the plan trains."""
        pairs = zip(self.layout.parameters, self.tables.params, strict=True)
        return tuple(p.name for p, record in pairs if record.trained)

    @cached_property
    def local_ranges(self) -> Ranges:
        """The coordinates that stay on the device."""
        return self.layout.ranges(p.name for p in self.layout.parameters if p.group == LOCAL)

    def sent_ranges(self, instruction: Instruction) -> Ranges:
        """The coordinates that a train instruction sends back: trained and not local."""
        return _sent_ranges(self, instruction)

    def report(self) -> dict[str, int]:
        """Byte figures that add up, and multiply-accumulates.

        ``ram_bytes`` = parameters + arena + state + sample + stack + reserve;
        ``flash_bytes`` = image + runtime.
        """
        return dict(self.tables.card["report"])

    @cached_property
    def footprint(self) -> Footprint:
        """The Program as the matching of Programs and devices sees it."""
        report = self.report()
        return Footprint(
            self.digest, self.tables.layout_digest, report["ram_bytes"], report["flash_bytes"],
            report["macs_per_step"], report["macs_per_forward"], self.batch,
        )  # fmt: skip

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
        made = zeros(self.layout.size)
        for index, parameter in enumerate(self.layout.parameters):
            stop = parameter.offset + parameter.size
            made[parameter.offset : stop] = self._initial(seed, index, parameter)
        return vector(made)

    def _initial(self, seed: int, index: int, parameter: Parameter) -> memoryview[float]:
        if parameter.name in self.start:
            return floats(self.start[parameter.name])
        how, value = self.tables.card["initial"][index]
        if how == "constant":
            return floats([value] * parameter.size)
        return _uniform(seed, index, parameter.size, value)


@lru_cache(maxsize=16)
def _sent_ranges(program: Program, instruction: Instruction) -> Ranges:
    if instruction.kind != TRAIN:
        return ()
    layout = program.layout
    groups = {g for p in instruction.phases for g in p.groups or layout.groups}.difference(UNSENT)
    return layout.ranges(n for n in program.trained_names if layout[n].group in groups)


def _uniform(seed: int, index: int, count: int, bound: float) -> memoryview[float]:
    """``count`` float32 uniform in [-bound, bound) of stream ``index``."""
    if has_numpy():
        import numpy as np

        from fedtiny import draws

        words = draws.words(seed, 0, np.array([index], np.uint32), rng.Purpose.INIT, count)
        return floats(draws.uniform(words, -bound, bound))
    plain = rng.words(seed, 0, index, rng.Purpose.INIT, count)
    return floats([rng.uniform(word, -bound, bound) for word in plain])

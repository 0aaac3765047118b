"""The image of a Program: its tables, written, and read back.

An image is little-endian: a header, the tensor, parameter and op tables (struct for struct those of
``runtime/ft_runtime.h``), the words of constant tensors, and a JSON card with names and figures,
which the runtimes ignore.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from fedtiny.errors import ImageError

MAGIC, VERSION, HEADER_BYTES, CHECKSUM_AT = b"FTI1", 4, 136, 12
NONE = 0xFFFF
ALWAYS = 0xFF
MOMENTUM, CLIP, PROX, CORRECTION = 1, 2, 4, 8
FEATURES = {"momentum": MOMENTUM, "clip": CLIP, "prox": PROX, "correction": CORRECTION}
"""The hyper-parameters that need memory (or ops) of their own, and their bits in an image."""
ARENA, PARAMS, INPUT, LABELS, LIVE, FROZEN, CONST = range(7)
"""Regions. What stands in ``FROZEN`` is written when a model is loaded, and never else: flash. What
stands in ``CONST`` is part of the image."""
F32, I32, I8 = range(3)
"""Element types."""
WHOLE, IN, OUT = range(3)
"""The axis of the channels that an overlay holds."""
PLAIN, RANGE = range(2)
"""Forms of a parameter: ``RANGE``: lo and hi in the vector, scale and zero in the memory."""
NO_POOL, GAPS, BITMAP = 0, 1, 2
"""How the pool of live weights is indexed."""
MAX_IMAGE_BYTES = 1 << 24

RELU6 = 7
_LINEAR, _CONV, _CONV_POOL, _SPARSE_CONV, _TRACKED, _MERGE = 1, 16, 17, 20, 29, 41
"""Codes of ops, as in `fedtiny.engine.ops`, which needs NumPy."""
_GROUPS = 7
"""The attribute that holds the groups of a convolution."""

_HEADER = struct.Struct("<4sHHII32sIIIII10H5I2I2HI3I")
_TENSOR = struct.Struct("<4B5IH2x")
_PARAM = struct.Struct("<HBBIIIIHBB")
_OP = struct.Struct("<4B8H10H")


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One row of the tensor table. ``offset`` in bytes of its region; of a pruned parameter its
    number among them. ``scale``: the tensor with the scale and zero of an I8 activation, or with
    the steps of an I8 weight."""

    dtype: int
    region: int
    shape: tuple[int, ...]
    offset: int
    scale: int = NONE


@dataclass(frozen=True, slots=True)
class ParamRecord:
    """One row of the parameter table. ``vector_at``, ``count``, ``state_at`` in floats; ``pruned``
    is 0, or 1 + its number among the pruned. The record of an overlay stands behind that of its
    whole parameter; ``index`` is the constant tensor of its channels along ``axis``."""

    tensor: int
    group: int
    trained: bool
    vector_at: int
    count: int
    state_at: int
    pruned: int = 0
    index: int = NONE
    axis: int = WHOLE
    form: int = PLAIN


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
    """Everything in an image but its envelope.

    ``param_floats`` words of parameters stand in RAM, ``frozen_words`` in flash. The pool of live
    weights stands ``live_at`` words into the RAM of the parameters and holds ``live_capacity``
    values; a growth may return ``bucket`` places.
    """

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
    live_capacity: int
    live_at: int
    live_form: int
    n_pruned: int
    bucket: int
    frozen_words: int
    tensors: tuple[TensorRecord, ...]
    params: tuple[ParamRecord, ...]
    ops: tuple[OpRecord, ...]
    consts: tuple[int, ...]
    layout_digest: str
    card: Mapping[str, Any]

    @property
    def forward(self) -> tuple[OpRecord, ...]:
        """The ops that compute the output."""
        return self.ops[: self.n_forward]

    @property
    def prunable(self) -> set[int]:
        """The tensors that one op alone uses, as a weight by which every output sees all inputs."""
        uses = Counter(tensor for op in self.forward for tensor in op.tensors)
        weights = {op.tensors[1] for op in self.forward if _is_layer(op)}
        return {tensor for tensor in weights if uses[tensor] == 1}

    @property
    def head(self) -> int:
        """The tensor of the weights of a linear layer whose outputs are the Program's, or NONE; of
        merged weights that of the whole ones."""
        last = self.ops[self.n_forward - 1]
        wholes = {op.tensors[3]: op.tensors[0] for op in self.forward if op.code == _MERGE}
        return wholes.get(last.tensors[1], last.tensors[1]) if last.code == _LINEAR else NONE

    def channels(self, overlay: ParamRecord) -> tuple[int, ...]:
        """The channels of the whole parameter that an overlay holds, ascending."""
        index = self.tensors[overlay.index]
        return self.consts[index.offset // 4 :][: math.prod(index.shape)]

    @property
    def tracked(self) -> tuple[int, ...]:
        """The running statistics, a mean and a variance for each tracked normalisation."""
        return tuple(t for op in self.forward if op.code == _TRACKED for t in op.tensors[1:3])

    @property
    def statistics_floats(self) -> int:
        """How many floats those are."""
        return sum(math.prod(self.tensors[index].shape) for index in self.tracked)

    def live_weights(self, bits: bytes) -> int:
        """How many of the weights that can be pruned a mask leaves live."""
        whole = int.from_bytes(bits, "little")
        pruned = (p for p in self.params if p.pruned)
        return sum((whole >> p.vector_at & (1 << p.count) - 1).bit_count() for p in pruned)


def _is_layer(op: OpRecord) -> bool:
    dense = op.code in (_CONV, _CONV_POOL) and op.attributes[_GROUPS] == 1
    return dense or op.code in (_LINEAR, _SPARSE_CONV)


# ---- writing ---------------------------------------------------------------------------------


def write_image(tables: Tables) -> bytes:
    """The image of the tables, with its checksum."""
    body = [_pack_tensor(t) for t in tables.tensors], [_pack_param(p) for p in tables.params]
    consts = struct.pack(f"<{len(tables.consts)}I", *tables.consts)
    sections = [*map(b"".join, body), b"".join(map(_pack_op, tables.ops)), consts]
    card = json.dumps(tables.card, separators=(",", ":")).encode()
    starts = [HEADER_BYTES]
    for section in sections:
        starts.append(starts[-1] + len(section))
    image_bytes = starts[-1] + len(card)
    consts_at = starts.pop(3)
    counts = (len(tables.tensors), len(tables.params), len(tables.ops), tables.n_forward)
    ends = (tables.input, tables.label, tables.output, tables.loss)
    header = _HEADER.pack(
        MAGIC, VERSION, HEADER_BYTES, image_bytes, 0, bytes.fromhex(tables.layout_digest),
        tables.arena_bytes, tables.param_floats, tables.state_floats, tables.trained_floats,
        tables.vector_floats, *counts, tables.batch, tables.features, *ends, *starts, len(card),
        tables.live_capacity, tables.live_at, tables.live_form, tables.n_pruned, tables.bucket,
        tables.frozen_words, consts_at if consts else 0, len(tables.consts),
    )  # fmt: skip
    return with_checksum(b"".join([header, *sections, card]))


def with_checksum(image: bytes) -> bytes:
    """The image with the checksum that its bytes need."""
    crc = zlib.crc32(image[CHECKSUM_AT + 4 :])
    return image[:CHECKSUM_AT] + struct.pack("<I", crc) + image[CHECKSUM_AT + 4 :]


def _pack_tensor(t: TensorRecord) -> bytes:
    dims = (*t.shape, 1, 1, 1, 1)[:4]
    return _TENSOR.pack(t.dtype, t.region, len(t.shape), 0, t.offset, *dims, t.scale)


def _pack_param(p: ParamRecord) -> bytes:
    place = (p.vector_at, p.count, p.state_at, p.pruned)
    return _PARAM.pack(p.tensor, p.group, p.trained, *place, p.index, p.axis, p.form)


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
        (h.ops_at, h.n_ops, _OP.size), (h.consts_at, h.const_words, 4),
        (h.card_at, h.card_bytes, 1),
    )  # fmt: skip
    for start, count, size in sections:
        if (start or count) and (start < HEADER_BYTES or start + count * size > len(image)):
            raise ImageError(f"a table of {count} rows at byte {start} leaves {len(image)} bytes")
    shared = {f.name: getattr(h, f.name) for f in fields(Tables) if f.name in h._fields}
    rows: dict[str, Any] = {
        "tensors": tuple(map(_read_tensor, _rows(image, _TENSOR, h.tensors_at, h.n_tensors))),
        "params": tuple(ParamRecord(*row) for row in _rows(image, _PARAM, h.params_at, h.n_params)),
        "ops": tuple(map(_read_op, _rows(image, _OP, h.ops_at, h.n_ops))),
        "consts": struct.unpack_from(f"<{h.const_words}I", image, h.consts_at),
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
    live_capacity: int
    live_at: int
    live_form: int
    n_pruned: int
    bucket: int
    frozen_words: int
    consts_at: int
    const_words: int


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
    dtype, region, ndim, _, offset, *dims, scale = row
    return TensorRecord(dtype, region, tuple(dims[:ndim]), offset, scale)


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

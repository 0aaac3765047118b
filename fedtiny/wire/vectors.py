"""Vectors as bytes: some coordinates or all, of a mask, sparse or int8; differences of models.

The reader allocates nothing that the message asks for: what it makes has the size of the plan or of
the message, and every length is checked first. The bytes are the same with NumPy and without.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from fedtiny import varints
from fedtiny.errors import DataError, WireError
from fedtiny.masks import Mask
from fedtiny.tensors import FLOAT_BYTES, all_finite, float_view, has_numpy, int_view, raw
from fedtiny.values import Instruction, Layout, Ranges, Update, length
from fedtiny.wire.checks import parse
from fedtiny.wire.pb import tensors_pb2 as pb

if TYPE_CHECKING:
    from fedtiny.tensors import Buffer

INT8_BLOCK = 64
"""Coordinates that share a scale: the scales are a sixteenth of the values."""
_INT8_MOST = 127
NAME_BYTES = 8
"""Of the digest of a mask, which name it among those of a round."""
_ONE = array("f", [1.0]).tobytes()


def mask_name(blob: bytes) -> bytes:
    """What a mask that was given is called in the vectors that come back."""
    return hashlib.sha256(blob).digest()[:NAME_BYTES]


def given_mask(update: Update, asked: Instruction) -> bytes:
    """The `mask_name` of the mask that was given, if the update is still under it; else empty."""
    if asked.mask is None or update.mask is None:
        return b""
    moved = asked.grow and update.mask.blob != asked.mask
    return b"" if moved else mask_name(asked.mask)


# ---- writing ---------------------------------------------------------------------------------


def write_values(update: Update, size: int, form: str = "float32", given: bytes = b"") -> bytes:
    """The vector of an update to a model of ``size``; empty if it has none.

    ``given`` is that of `given_mask`; without it a mask is written whole. ``form`` as in
    `write_vector`. Raises DataError as that does.
    """
    if update.places is not None:
        return _write_sparse(update, size)
    if not update.nbytes:
        return b""
    return write_vector(update.values, size, update.ranges, form, update.mask, given)


def write_vector(
    values: Buffer, size: int, ranges: Ranges = (), form: str = "float32",
    mask: Mask | None = None, given: bytes = b"",
) -> bytes:  # fmt: skip
    """The float32 ``values`` of the coordinates in ``ranges`` (none: all) of a vector of ``size``.

    With a ``mask``, of the live ones among them. ``form`` is "float32" or "int8" (rounded). Raises
    DataError if the values are too many or too few, or not finite.
    """
    data, count = raw(values), _covered(ranges or ((0, size),), mask)
    if len(data) != FLOAT_BYTES * count:
        raise DataError(f"{len(data):,} B are not the float32 values of {count:,} coordinates")
    _check_finite(data)
    named: dict[str, Any] = _named(mask, given) if mask else {}
    written = pb.Vector(**_head(size, ranges), **_FORMS[form](data), **named)
    return bytes(written.SerializeToString())


def _covered(ranges: Ranges, mask: Mask | None) -> int:
    """How many values there are for the ranges."""
    return length(ranges) if mask is None else mask.length(ranges)


def _check_finite(data: memoryview[int]) -> None:
    if not all_finite(float_view(data)):
        count = len(data) // FLOAT_BYTES
        raise DataError(f"of {count:,} values some are NaN or infinite; they cannot be sent")


def _named(mask: Mask, given: bytes) -> dict[str, bytes]:
    return {"given_mask": given} if given else {"own_mask": mask.blob}


def _head(size: int, ranges: Ranges) -> dict[str, Any]:
    whole = ranges in ((), ((0, size),))
    return {"size": size, "edges": () if whole else [edge for pair in ranges for edge in pair]}


def _write_sparse(update: Update, size: int) -> bytes:
    """An update that has values for some places of the whole vector."""
    places, values = raw(update.places or b"").cast("I"), raw(update.values)
    if len(values) != FLOAT_BYTES * len(places) or update.ranges != ((0, size),):
        raise DataError(f"{len(values):,} B of values at {len(places):,} of {size:,} coordinates")
    _check_finite(values)
    ones = values == _ONE * len(places)
    sparse = pb.Sparse(places=varints.write(_gaps(places)), float32=b"" if ones else bytes(values))
    return bytes(pb.Vector(size=size, sparse=sparse).SerializeToString())


def _gaps(places: memoryview[int]) -> Any:
    """The first place, then how many lie between each and the one before."""
    if has_numpy():
        import numpy as np

        return np.diff(np.asarray(places).astype(np.int64), prepend=-1) - 1
    return [b - a - 1 for a, b in itertools.pairwise([-1, *places])]


def _write_float32(data: memoryview[int]) -> dict[str, Any]:
    return {"float32": bytes(data)}


def _write_int8(data: memoryview[int]) -> dict[str, Any]:
    values = float_view(data)
    blocks = [values[at : at + INT8_BLOCK] for at in range(0, len(values), INT8_BLOCK)]
    largest = (max(max(block), -min(block)) for block in blocks)
    scales = array("f", [most / _INT8_MOST for most in largest])
    q = b"".join(_rounded(block, scale) for block, scale in zip(blocks, scales, strict=True))
    return {"int8": pb.Int8(block=INT8_BLOCK, scales=scales.tobytes(), q=q)}


def _rounded(block: memoryview[float], scale: float) -> bytes:
    """``value / scale`` to the nearest, ties to even. A scale too small for float32 is 0."""
    if not scale:
        return bytes(len(block))
    # The scale of subnormal values is so coarse that the quotient can be more than 127.
    steps = (round(value / scale) for value in block)
    return array("b", [max(-_INT8_MOST, min(_INT8_MOST, step)) for step in steps]).tobytes()


_FORMS: Mapping[str, Callable[[memoryview[int]], dict[str, Any]]] = {
    "float32": _write_float32,
    "int8": _write_int8,
}


# ---- how long it will be ---------------------------------------------------------------------


def vector_bytes(size: int, ranges: Ranges, mask: Mask | None, own: bool = False) -> int:
    """Bytes of a vector of those coordinates as float32.

    With ``own``, the most that it has when its device may have moved the mask.
    """
    head = pb.Vector(**_head(size, ranges)).ByteSize()
    named = (mask_bytes(size) if own else NAME_BYTES) if mask else 0
    return int(head) + field_bytes(named) + field_bytes(FLOAT_BYTES * _covered(ranges, mask))


def sparse_bytes(size: int, most: int, valued: bool) -> int:
    """The most bytes of a vector with values at ``most`` places: each value is 1 if not valued."""
    # Only so many places of a vector can be 2^7, 2^14, ... apart, and take a byte more.
    places = sum(min(most, size >> bits) for bits in range(0, 7 * varints.MOST_BYTES, 7))
    body = field_bytes(places) + (field_bytes(FLOAT_BYTES * most) if valued else 0)
    return int(pb.Vector(size=size, sparse=pb.Sparse()).ByteSize()) - 2 + max(2, field_bytes(body))


def mask_bytes(size: int) -> int:
    """The most bytes of the blob of a mask: it is no longer than as a bitmap."""
    return 1 + varints.nbytes([size]) + (size + 7) // 8


def field_bytes(nbytes: int) -> int:
    """Bytes of a field of so many: a tag, their number seven bits at a time, themselves."""
    return 1 + -(-max(1, nbytes.bit_length()) // 7) + nbytes if nbytes else 0


# ---- reading ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Due:
    """What is due: a vector of ``size`` in at most ``most_bytes``.

    ``masks`` are those that were given, by `mask_name`; a mask of the device's own is read for the
    ``layout``, and refused without one.
    """

    size: int
    most_bytes: int
    masks: Mapping[bytes, Mask] = field(default_factory=dict)
    layout: Layout | None = None


class Values(NamedTuple):
    """What a vector says: as in `Update`."""

    ranges: Ranges = ()
    values: bytes = b""
    mask: Mask | None = None
    places: bytes | None = None


def read_vector(data: Buffer, due: Due) -> Values:
    """The coordinates of a vector, and their float32 values.

    Raises WireError if the data are longer than is due, no vector, one of another size, at odds
    with themselves, of a mask that is not known, or not finite.
    """
    found = _read(raw(data), due)
    if not all_finite(float_view(found.values)):
        count = len(found.values) // FLOAT_BYTES
        raise WireError("not-finite", f"of {count:,} values some are NaN or infinite")
    return found


def _read(data: memoryview[int], due: Due) -> Values:
    if len(data) > due.most_bytes:
        most = due.most_bytes
        raise WireError("size", f"a vector of {len(data):,} B; at most {most:,} B are due")
    message = parse(pb.Vector, bytes(data))
    if message.size != due.size:
        text = f"a vector of {message.size:,} coordinates; the model has {due.size:,}"
        raise WireError("size", text)
    form = message.WhichOneof("values")
    if form is None:
        raise WireError("malformed", "a vector without values")
    ranges, mask = _read_ranges(message.edges, due.size), _read_mask(message, due)
    if form == "sparse":
        return _read_sparse(message, due.size)
    values = _READERS[form](getattr(message, form), _covered(ranges, mask))
    return Values(ranges, values, mask)


def _read_mask(message: Any, due: Due) -> Mask | None:
    form = message.WhichOneof("mask")
    if form == "given_mask":
        if message.given_mask not in due.masks:
            name = message.given_mask[:NAME_BYTES].hex()
            raise WireError("mask", f"the mask {name} is none that was given in this round")
        return due.masks[message.given_mask]
    if form == "own_mask":
        if due.layout is None:
            raise WireError("mask", "a mask of the device's own, where none can be")
        return Mask.read(message.own_mask, due.layout)
    return None


def _read_ranges(edges: Any, size: int) -> Ranges:
    if not edges:
        return ((0, size),)
    last = -1
    for edge in edges:
        if edge <= last:
            raise WireError("ranges", f"the edge {edge:,} follows {last:,}; edges must ascend")
        last = edge
    if len(edges) % 2 or last > size:
        raise WireError("ranges", f"{len(edges):,} edges up to {last:,}; there are {size:,} places")
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _read_sparse(message: Any, size: int) -> Values:
    """Values at some places of the whole vector."""
    if message.edges or message.WhichOneof("mask"):
        raise WireError("malformed", "sparse values of a part of the vector, or of a mask")
    places = _read_places(message.sparse.places, size)
    values = message.sparse.float32 or _ONE * (len(places) // FLOAT_BYTES)
    _check_length("values", len(values), len(places))
    return Values(((0, size),), values, None, places)


def _read_places(data: bytes, size: int) -> bytes:
    """Ascending uint32, for gaps are never negative."""
    places = _summed(varints.read(data))
    if len(places) and places[-1] >= size:
        raise WireError("places", f"a place is {int(places[-1]):,}; there are {size:,}")
    return _uint32(places)


def _uint32(numbers: Any) -> bytes:
    if has_numpy():
        import numpy as np

        return np.asarray(numbers, np.uint32).tobytes()
    return array("I", numbers).tobytes()


def _summed(gaps: Any) -> Any:
    """The inverse of `_gaps`."""
    if has_numpy():
        import numpy as np

        return np.cumsum(gaps + 1) - 1
    return [at - 1 for at in itertools.accumulate(gap + 1 for gap in gaps)]


def _read_float32(values: bytes, count: int) -> bytes:
    _check_length("values", len(values), FLOAT_BYTES * count)
    return values


def _read_int8(int8: Any, count: int) -> bytes:
    _check_length("values", len(int8.q), count)
    if not int8.block:
        raise WireError("scales", "int8 values with blocks of 0")
    _check_length("scales", len(int8.scales), FLOAT_BYTES * -(-count // int8.block))
    scales, q = float_view(int8.scales), raw(int8.q).cast("b")
    if not all_finite(scales):
        raise WireError("scales", "int8 values with a scale that is NaN or infinite")
    if has_numpy():
        import numpy as np

        # Not np.repeat: a block may claim to be as long as four billion.
        each = np.asarray(scales)[np.arange(count) // int8.block]
        with np.errstate(over="ignore"):
            return bytes(each * np.asarray(q))
    return array("f", [scales[at // int8.block] * step for at, step in enumerate(q)]).tobytes()


def _check_length(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise WireError("length", f"{found:,} B of {what}; {expected:,} B are due")


_READERS: Mapping[str, Callable[[Any, int], bytes]] = {
    "float32": _read_float32,
    "int8": _read_int8,
}


# ---- one model laid over another ---------------------------------------------------------------

_GAP = 2
"""Coordinates that have not changed and are sent all the same: a new range costs as much."""


def write_delta(have: Buffer, model: Buffer) -> bytes | None:
    """What makes ``model`` of ``have``, bit for bit; None if the whole model is not longer."""
    before, after = raw(have), raw(model)
    if len(before) != len(after) or not len(after):
        return None
    ranges = _changed(int_view(before), int_view(after)) or ((0, 1),)
    size = len(after) // FLOAT_BYTES
    if FLOAT_BYTES * (length(ranges) + 2 * len(ranges)) >= len(after):
        return None
    values = b"".join(after[FLOAT_BYTES * a : FLOAT_BYTES * b] for a, b in ranges)
    delta = bytes(pb.Vector(**_head(size, ranges), float32=values).SerializeToString())
    return delta if len(delta) < len(after) else None


def lay_over(have: Buffer, delta: Buffer) -> bytes:
    """The model that `write_delta` was given. Raises WireError if the delta is not one."""
    model = bytearray(raw(have))
    ranges, values, *_ = _read(raw(delta), Due(len(model) // FLOAT_BYTES, len(model)))
    _check_length("values", len(values), FLOAT_BYTES * length(ranges))  # sparse ones may lack some
    at = 0
    for start, stop in ranges:
        nbytes = FLOAT_BYTES * (stop - start)
        model[FLOAT_BYTES * start : FLOAT_BYTES * stop] = values[at : at + nbytes]
        at += nbytes
    return bytes(model)


def _changed(before: memoryview[int], after: memoryview[int]) -> Ranges:
    """The ranges of coordinates that differ, those that are near each other as one."""
    ranges: list[tuple[int, int]] = []
    for place in _differing(before, after):
        if ranges and place - ranges[-1][1] <= _GAP:
            ranges[-1] = (ranges[-1][0], place + 1)
        else:
            ranges.append((place, place + 1))
    return tuple(ranges)


def _differing(before: memoryview[int], after: memoryview[int]) -> Iterator[int]:
    if has_numpy():
        import numpy as np

        yield from np.flatnonzero(np.asarray(before) != np.asarray(after)).tolist()
    else:
        yield from (at for at, value in enumerate(after) if value != before[at])

"""Vectors as bytes: some coordinates or all, of a mask, sparse, quantised; differences of models.

The reader allocates nothing that the message asks for: what it makes has the size of the plan or of
the message, and every length is checked first. The bytes are the same with NumPy and without.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from fedtiny import varints
from fedtiny.errors import DataError, WireError
from fedtiny.layout import Layout, Ranges, length
from fedtiny.masks import Mask
from fedtiny.tensors import FLOAT_BYTES, all_finite, float_view, has_numpy, int_view, raw
from fedtiny.transforms.quantisers import BITS, BLOCKS, INT8, SIGN, values_of
from fedtiny.values import Instruction, Quantised, Update
from fedtiny.wire.checks import parse
from fedtiny.wire.int8 import GRID, off_grid
from fedtiny.wire.pb import tensors_pb2 as pb

if TYPE_CHECKING:
    from fedtiny.tensors import Buffer

NAME_BYTES = 8
"""Of the digest of a mask, which name it among those of a round."""
_ONE = array("f", [1.0]).tobytes()


def mask_name(blob: bytes) -> bytes:
    """What a mask that was given is called in the vectors that come back."""
    return hashlib.sha256(blob).digest()[:NAME_BYTES]


def given_mask(update: Update, asked: Instruction) -> bytes:
    """The `mask_name` of the mask that was given, or that all draw alike, if the update is under
    it; else empty."""
    if update.mask is None:
        return b""
    if asked.mask is None:
        return mask_name(update.mask.blob) if asked.transforms else b""
    moved = asked.grow and update.mask.blob != asked.mask
    return b"" if moved else mask_name(asked.mask)


# ---- writing ---------------------------------------------------------------------------------


def write_values(update: Update, size: int, given: bytes = b"") -> bytes:
    """The vector of an update to a model of ``size``; empty if it has none.

    ``given`` is that of `given_mask`; without it a mask is written whole. Raises DataError if the
    values are too many or too few, or not finite.
    """
    if update.places is None and not update.ranges and not update.nbytes:
        return b""
    _check_values(update)
    named: dict[str, Any] = _named(update.mask, given) if update.mask else {}
    values = _values(update) if update.places is None else {"sparse": _sparse(update)}
    written = pb.Vector(**_head(size, update.ranges), **values, **named)
    return bytes(written.SerializeToString())


def _check_values(update: Update) -> None:
    """They are as many as their coordinates, and finite."""
    count = _covered(update.ranges, update.mask)
    if update.places is not None:
        count = len(update.places) // FLOAT_BYTES
    if update.nbytes != FLOAT_BYTES * count:
        raise DataError(f"{update.nbytes:,} B are not the float32 values of {count:,} coordinates")
    if not all_finite(float_view(raw(update.values))):
        raise DataError(f"of {count:,} values some are NaN or infinite; they cannot be sent")


def _sparse(update: Update) -> pb.Sparse:
    """Values at some places; those of votes, which are 1, are left out."""
    places = raw(update.places or b"").cast("I")
    alike = not update.quantised and raw(update.values) == _ONE * len(places)
    values = {} if alike else _values(update)
    return pb.Sparse(places=varints.write(_gaps(places)), **values)


def _values(update: Update) -> dict[str, Any]:
    """The field of the values: as float32, or as they were quantised."""
    small = update.quantised
    if small is None:
        return {"float32": bytes(raw(update.values))}
    if small.form == GRID:
        return {GRID: pb.Grid(q=small.q, float32=small.scales)}
    return {small.form: _FORMS[small.form](block=small.block, scales=small.scales, q=small.q)}


_FORMS: Mapping[str, Any] = {INT8: pb.Int8, SIGN: pb.Sign}


def _covered(ranges: Ranges, mask: Mask | None) -> int:
    """How many values there are for the ranges."""
    return length(ranges) if mask is None else mask.length(ranges)


def _named(mask: Mask, given: bytes) -> dict[str, bytes]:
    return {"given_mask": given} if given else {"own_mask": mask.blob}


def _head(size: int, ranges: Ranges) -> dict[str, Any]:
    whole = ranges in ((), ((0, size),))
    return {"size": size, "edges": () if whole else [edge for pair in ranges for edge in pair]}


def _gaps(places: memoryview[int]) -> Any:
    """The first place, then how many lie between each and the one before."""
    if has_numpy():
        import numpy as np

        return np.diff(np.asarray(places).astype(np.int64), prepend=-1) - 1
    return [b - a - 1 for a, b in itertools.pairwise([-1, *places])]


# ---- how long it will be ---------------------------------------------------------------------


def vector_bytes(
    size: int, ranges: Ranges, mask: Mask | None, own: bool = False, form: str = "float32"
) -> int:
    """Bytes of a vector of those coordinates, as float32 or quantised.

    With ``own``, the most that it has when its device may have moved the mask.
    """
    return _head_bytes(size, ranges, mask, own) + _value_bytes(_covered(ranges, mask), form)


def sparse_bytes(
    size: int, ranges: Ranges, mask: Mask | None, most: int, form: str = "float32"
) -> int:
    """The most bytes of a vector with values at ``most`` places; with form "" each value is 1."""
    # Only so many places of a vector can be 2^7, 2^14, ... apart, and take a byte more.
    places = sum(min(most, size >> bits) for bits in range(0, 7 * varints.MOST_BYTES, 7))
    body = field_bytes(places) + (_value_bytes(most, form) if form and most else 0)
    return _head_bytes(size, ranges, mask, own=False) + max(2, field_bytes(body))


def _head_bytes(size: int, ranges: Ranges, mask: Mask | None, own: bool) -> int:
    """Of all but the values."""
    named = (mask_bytes(size) if own else NAME_BYTES) if mask else 0
    return int(pb.Vector(**_head(size, ranges)).ByteSize()) + field_bytes(named)


def grid_bytes(size: int, ranges: Ranges, count: int) -> int:
    """Bytes of a vector of which ``count`` coordinates are int8."""
    rest = field_bytes(FLOAT_BYTES * (length(ranges) - count))
    return _head_bytes(size, ranges, None, own=False) + field_bytes(field_bytes(count) + rest)


def _value_bytes(count: int, form: str) -> int:
    if form == "float32":
        return max(2, field_bytes(FLOAT_BYTES * count))
    block, bits = BLOCKS[form], BITS[form]
    scales = field_bytes(FLOAT_BYTES * -(-count // block))
    number = int(_FORMS[form](block=block).ByteSize())
    return field_bytes(number + scales + field_bytes(_bytes_of(count * bits)))


def _bytes_of(bits: int) -> int:
    return (bits + 7) // 8


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
    ``layout``, and refused without one. ``steps`` are those of the int8 of the model that the
    device was sent, for each coordinate (`fedtiny.wire.int8`).
    """

    size: int
    most_bytes: int
    masks: Mapping[bytes, Mask] = field(default_factory=dict)
    layout: Layout | None = None
    steps: bytes = b""


class Values(NamedTuple):
    """What a vector says: as in `Update`."""

    ranges: Ranges = ()
    values: bytes = b""
    mask: Mask | None = None
    places: bytes | None = None
    quantised: Quantised | None = None


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
    if form == GRID:
        return Values(ranges, _read_grid(message, ranges, due))
    if form != "sparse":
        values, quantised = _read_form(message, form, _covered(ranges, mask))
        return Values(ranges, values, mask, None, quantised)
    places = _read_places(message.sparse.places, due.size)
    count, form = len(places) // FLOAT_BYTES, message.sparse.WhichOneof("values")
    values, quantised = _read_form(message.sparse, form, count) if form else (_ONE * count, None)
    return Values(ranges, values, mask, places, quantised)


def _read_form(message: Any, form: str, count: int) -> tuple[bytes, Quantised | None]:
    """So many values of the message, and how they travelled."""
    found = getattr(message, form)
    if form == "float32":
        _check_length("values", len(found), FLOAT_BYTES * count)
        return found, None
    _check_quantised(found, form, count)
    quantised = Quantised(form, found.block, found.scales, found.q)
    return values_of(quantised, count), quantised


def _read_grid(message: Any, ranges: Ranges, due: Due) -> bytes:
    if not due.steps or message.WhichOneof("mask"):
        raise WireError("grid", "values as int8, of a model that has none or is not here any more")
    return off_grid(message.grid.q, message.grid.float32, due.steps, ranges)


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


def _check_quantised(found: Any, form: str, count: int) -> None:
    _check_length("values", len(found.q), _bytes_of(count * BITS[form]))
    if form == SIGN and count % 8 and found.q[-1] >> count % 8:
        raise WireError("malformed", "signs with bits that stand for no value")
    if not found.block:
        raise WireError("scales", f"{form} values with blocks of 0")
    _check_length("scales", len(found.scales), FLOAT_BYTES * -(-count // found.block))
    if not all_finite(float_view(found.scales)):
        raise WireError("scales", f"{form} values with a scale that is NaN or infinite")


def _check_length(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise WireError("length", f"{found:,} B of {what}; {expected:,} B are due")


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
    ranges, values, _, places, _ = _read(raw(delta), Due(len(model) // FLOAT_BYTES, len(model)))
    if places is not None:
        raise WireError("malformed", "a model at some places; ranges are due")
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

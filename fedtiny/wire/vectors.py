"""Vectors as bytes: some coordinates or all, whole, sparse or int8; and differences of models.

The reader allocates nothing that the message asks for: what it makes has the size of the plan, and
every length is checked first. The bytes are the same with NumPy and without.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fedtiny.errors import DataError, WireError
from fedtiny.tensors import FLOAT_BYTES, all_finite, float_view, has_numpy, int_view, raw
from fedtiny.values import Ranges, length
from fedtiny.wire.checks import parse
from fedtiny.wire.pb import tensors_pb2 as pb

if TYPE_CHECKING:
    from fedtiny.tensors import Buffer

INT8_BLOCK = 64
"""Coordinates that share a scale: the scales are a sixteenth of the values."""
_INT8_MOST = 127


# ---- writing ---------------------------------------------------------------------------------


def write_vector(values: Buffer, size: int, ranges: Ranges = (), form: str = "float32") -> bytes:
    """The float32 ``values`` of the coordinates in ``ranges`` (none: all) of a vector of ``size``.

    ``form`` is "float32", "sparse" (the values that are not zero) or "int8" (rounded). Raises
    DataError if the values are too many or too few, or not finite.
    """
    data, count = raw(values), length(ranges) if ranges else size
    if len(data) != FLOAT_BYTES * count:
        raise DataError(f"{len(data):,} B are not the float32 values of {count:,} coordinates")
    if not all_finite(float_view(data)):
        raise DataError(f"of {count:,} values some are NaN or infinite; they cannot be sent")
    return bytes(pb.Vector(**_head(size, ranges), **_FORMS[form](data)).SerializeToString())


def _head(size: int, ranges: Ranges) -> dict[str, Any]:
    whole = ranges in ((), ((0, size),))
    return {"size": size, "edges": () if whole else [edge for pair in ranges for edge in pair]}


def head_bytes(size: int, ranges: Ranges) -> int:
    """Bytes of a vector of those coordinates, before its values."""
    return int(pb.Vector(**_head(size, ranges)).ByteSize())


def _write_float32(data: memoryview[int]) -> dict[str, Any]:
    return {"float32": bytes(data)}


def _write_sparse(data: memoryview[int]) -> dict[str, Any]:
    values = float_view(data)
    if has_numpy():
        import numpy as np

        dense = np.asarray(values)
        found = np.flatnonzero(dense)
        places, kept = found.astype("<u4").tobytes(), dense[found].tobytes()
    else:
        chosen = [place for place, value in enumerate(values) if value]
        places = array("I", chosen).tobytes()
        kept = array("f", [values[place] for place in chosen]).tobytes()
    return {"sparse": pb.Sparse(places=places, float32=kept)}


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
    "sparse": _write_sparse,
    "int8": _write_int8,
}


# ---- reading ---------------------------------------------------------------------------------


def read_vector(data: Buffer, size: int, most_bytes: int) -> tuple[Ranges, bytes]:
    """The coordinates of a vector of ``size``, and their float32 values.

    Raises WireError if the data are longer than ``most_bytes``, no vector, one of another size, at
    odds with themselves, or not finite.
    """
    ranges, values = _read(raw(data), size, most_bytes)
    if not all_finite(float_view(values)):
        raise WireError("not-finite", f"of {length(ranges):,} values some are NaN or infinite")
    return ranges, values


def _read(data: memoryview[int], size: int, most_bytes: int) -> tuple[Ranges, bytes]:
    if len(data) > most_bytes:
        raise WireError("size", f"a vector of {len(data):,} B; at most {most_bytes:,} B are due")
    message = parse(pb.Vector, bytes(data))
    if message.size != size:
        raise WireError("size", f"a vector of {message.size:,} coordinates; the model has {size:,}")
    ranges = _read_ranges(message.edges, size)
    form = message.WhichOneof("values")
    if form is None:
        raise WireError("malformed", "a vector without values")
    return ranges, _READERS[form](getattr(message, form), length(ranges))


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


def _read_float32(values: bytes, count: int) -> bytes:
    _check_length("values", len(values), FLOAT_BYTES * count)
    return values


def _read_sparse(sparse: Any, count: int) -> bytes:
    _check_length("values", len(sparse.float32), len(sparse.places))
    if len(sparse.places) % FLOAT_BYTES or len(sparse.places) > FLOAT_BYTES * count:
        raise WireError("length", f"{len(sparse.places):,} B of places among {count:,}")
    places = raw(sparse.places).cast("I")
    if not _ascend(places, count):
        raise WireError("places", f"the places of values do not ascend from 0 to {count - 1:,}")
    return _scattered(places, float_view(sparse.float32), count)


def _ascend(places: memoryview[int], count: int) -> bool:
    """Whether each place is beyond the one before, and within the count."""
    if not len(places):
        return True
    if has_numpy():
        import numpy as np

        found = np.asarray(places)
        rises = bool((found[1:] > found[:-1]).all())
    else:
        rises = all(map(operator.lt, places, places[1:]))
    return rises and places[-1] < count


def _scattered(places: memoryview[int], values: memoryview[float], count: int) -> bytes:
    dense = float_view(bytearray(FLOAT_BYTES * count))
    if has_numpy():
        import numpy as np

        np.asarray(dense)[np.asarray(places)] = values
    else:
        for place, value in zip(places, values, strict=True):
            dense[place] = value
    return bytes(dense)


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
    "sparse": _read_sparse,
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
    ranges, values = _read(raw(delta), len(model) // FLOAT_BYTES, len(model))
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

"""Records of the journal as bytes: a JSON head, and arrays as they lie in memory.

    4 bytes   length of the head, little-endian
    head      JSON; "arrays" lists the type and the shape of each array
    arrays    one behind the other

A mask is the array of its bits, written once; the head names it by its place among those of the
record, from 1 on, where 0 is none. Everything comes back exactly: sums are written as integers and
fractions, floats in the shortest form that reads as the same. Nothing is pickled. What does not add
up raises one of the errors that `checking` makes a RunError of.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.errors import DataError, RunError
from fedtiny.fold import FoldRule, Total
from fedtiny.layout import Ranges
from fedtiny.masks import Mask
from fedtiny.rounds.events import Carry, Grant, Open
from fedtiny.rounds.journal import Accepted, Pending
from fedtiny.rounds.measures import Measures
from fedtiny.tensors import raw
from fedtiny.values import Update

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedtiny.rounds.content import Part
    from fedtiny.strategies.base import State
    from fedtiny.tensors import Buffer

    Array = npt.NDArray[Any]

Body = bytes | memoryview

_LENGTH_BYTES = 4
_TYPES = ("<f4", "<f8", "<i8", "|u1")


# ---- head and arrays -------------------------------------------------------------------------


def pack(head: Mapping[str, Any], arrays: Sequence[Array]) -> bytes:
    """The head and the arrays as one body."""
    described = [[array.dtype.str, list(array.shape)] for array in arrays]
    text = json.dumps({**head, "arrays": described}, separators=(",", ":")).encode()
    length = len(text).to_bytes(_LENGTH_BYTES, "little")
    return b"".join([length, text, *(array.tobytes() for array in arrays)])


def unpack(body: Body) -> tuple[dict[str, Any], list[Array]]:
    """The inverse of `pack`; the arrays share the memory of the body."""
    view = memoryview(body)
    at = _LENGTH_BYTES + int.from_bytes(view[:_LENGTH_BYTES], "little")
    head = json.loads(bytes(view[_LENGTH_BYTES:at]))
    arrays = []
    for kind, shape in head.pop("arrays"):
        _require(kind in _TYPES and all(type(n) is int and n >= 0 for n in shape))
        end = at + np.dtype(kind).itemsize * math.prod(shape)
        _require(end <= len(view))
        arrays.append(np.frombuffer(view[at:end], kind).reshape(shape))
        at = end
    _require(at == len(view))
    return head, arrays


_FLAWS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, DataError)


@contextmanager
def checking(what: str) -> Iterator[None]:
    """Whatever goes wrong while bytes are read means that they are damaged: RunError says which."""
    try:
        yield
    except _FLAWS as error:
        raise RunError(
            f"{what} is damaged ({type(error).__name__}: {error}); restore the folder from a "
            "backup, or begin anew with --new-run"
        ) from error


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("the arrays are not as the head says")


# ---- what is pending -------------------------------------------------------------------------


def kind_of(record: Pending) -> str:
    """What to call `read` with."""
    return _KINDS[type(record)]


def write(record: Pending) -> bytes:
    """The record as bytes."""
    return _WRITERS[kind_of(record)](record)


def read(kind: str, body: Body) -> Pending:
    """The inverse of `write`."""
    with checking("a record of the open round"):
        return _READERS[kind](*unpack(body))


def _write_grant(grant: Grant) -> bytes:
    head = {"round": grant.round, "version": grant.version, "repeated": grant.repeated}
    return pack(head, [grant.leases, grant.devices, grant.deadlines])


def _read_grant(head: Mapping[str, Any], arrays: Sequence[Array]) -> Grant:
    leases, devices, deadlines = arrays
    return Grant(head["round"], head["version"], leases, devices, deadlines, head["repeated"])


def _write_carry(carry: Carry) -> bytes:
    columns = carry.leases, carry.devices, carry.versions, carry.deadlines
    return pack({"round": carry.round}, columns)


def _write_accepted(record: Accepted) -> bytes:
    part, arrays = _write_part(record.part)
    head = {"round": record.round, "part": part, "measures": measures_to_json(record.measures)}
    return pack(head, [record.leases, *arrays])


def _read_accepted(head: Mapping[str, Any], arrays: Sequence[Array]) -> Accepted:
    part = _read_part(head["part"], arrays[1:])
    return Accepted(head["round"], arrays[0], part, measures_from_json(head["measures"]))


_KINDS: Mapping[type[Pending], str] = {
    Open: "open", Grant: "grant", Carry: "carry", Accepted: "accepted",
}  # fmt: skip
_WRITERS: Mapping[str, Callable[[Any], bytes]] = {
    "open": lambda window: pack(asdict(window), []),
    "grant": _write_grant,
    "carry": _write_carry,
    "accepted": _write_accepted,
}
_READERS: Mapping[str, Callable[[Mapping[str, Any], Sequence[Array]], Pending]] = {
    "open": lambda head, arrays: Open(**head),
    "grant": _read_grant,
    "carry": lambda head, arrays: Carry(head["round"], *arrays),
    "accepted": _read_accepted,
}


# ---- what updates add to a round -------------------------------------------------------------


class _Masks:
    """The masks of a record, as they are written."""

    def __init__(self) -> None:
        self._places: dict[Mask | None, int] = {None: 0}

    def place(self, mask: Mask | None) -> int:
        """Where it stands; a new one becomes the last."""
        return self._places.setdefault(mask, len(self._places))

    @property
    def sizes(self) -> list[int]:
        return [mask.size for mask in self._places if mask]

    @property
    def arrays(self) -> list[Array]:
        return [_bytes(mask.bits) for mask in self._places if mask]


def _read_masks(
    sizes: Sequence[int], arrays: Sequence[Array]
) -> tuple[list[Mask | None], Sequence[Array]]:
    """The masks by their places, and the arrays behind them."""
    bits = (array.tobytes() for array in arrays)
    return [None, *map(Mask, sizes, bits)], arrays[len(sizes) :]


def _bytes(buffer: Buffer) -> Array:
    return np.frombuffer(raw(buffer), np.uint8)


def _write_part(part: Part) -> tuple[Any, list[Array]]:
    if part is None:
        return None, []
    if isinstance(part, Total):
        return _write_sums(part)
    masks = _Masks()
    heads = [_update_head(update, masks) for update in part]
    sent = [buffer for update in part for buffer in (update.values, update.places or b"")]
    return {"updates": heads, "masks": masks.sizes}, [*masks.arrays, *map(_bytes, sent)]


def _read_part(head: Any, arrays: Sequence[Array]) -> Part:
    if head is None:
        return None
    if "rule" in head:
        return _read_sums(head, arrays)
    masks, rest = _read_masks(head["masks"], arrays)
    columns = zip(head["updates"], rest[::2], rest[1::2], strict=True)
    return tuple(_update(each, values, places, masks) for each, values, places in columns)


def write_total(total: Total) -> bytes:
    """A Total as bytes."""
    return pack(*_write_sums(total))


def read_total(body: Body) -> Total:
    """The inverse of `write_total`."""
    return _read_sums(*unpack(body))


def _write_sums(total: Total) -> tuple[dict[str, Any], list[Array]]:
    masks = _Masks()
    weights = [
        [ranges, masks.place(mask), weight] for (ranges, mask), weight in total.weights.items()
    ]
    head = {"rule": asdict(total.rule), "weights": weights, "count": total.count}
    return head | {"masks": masks.sizes}, [*masks.arrays, total.sums]


def _read_sums(head: Mapping[str, Any], arrays: Sequence[Array]) -> Total:
    masks, (sums,) = _read_masks(head["masks"], arrays)
    weights = {(_ranges(ranges), masks[mask]): weight for ranges, mask, weight in head["weights"]}
    return Total(FoldRule(**head["rule"]), sums, weights, head["count"])


_COLUMNS = ("lease", "device", "round", "version", "samples", "ranges", "measures")


def _update_head(update: Update, masks: _Masks) -> dict[str, Any]:
    sent = {"mask": masks.place(update.mask), "places": update.places is not None}
    return {name: getattr(update, name) for name in _COLUMNS} | sent


def _update(
    head: Mapping[str, Any], values: Array, places: Array, masks: Sequence[Mask | None]
) -> Update:
    said = {**head, "ranges": _ranges(head["ranges"]), "mask": masks[head["mask"]]}
    said["places"] = places.tobytes() if head["places"] else None
    return Update(values=values.data if values.size else b"", **said)


def _ranges(pairs: Iterable[Sequence[int]]) -> Ranges:
    return tuple((start, stop) for start, stop in pairs)


# ---- measures and state ----------------------------------------------------------------------


def measures_to_json(measures: Measures) -> dict[str, Any]:
    """Exact: each sum is its numerator and denominator."""
    sums = {name: [term.numerator, term.denominator] for name, term in measures.sums.items()}
    return {"sums": sums, "extremes": dict(measures.extremes)}


def measures_from_json(value: Mapping[str, Any]) -> Measures:
    """The inverse of `measures_to_json`."""
    sums = {name: Fraction(*terms) for name, terms in value["sums"].items()}
    return Measures(sums, dict(value["extremes"]))


def write_state(state: State) -> bytes:
    """A strategy's state as bytes: numbers in the head, arrays behind it."""
    arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    values = [[name, None if name in arrays else value] for name, value in state.items()]
    return pack({"state": values}, list(arrays.values()))


def read_state(body: Body) -> State:
    """The inverse of `write_state`, in the same order."""
    head, arrays = unpack(body)
    rest = iter(arrays)
    return {name: next(rest) if value is None else value for name, value in head["state"]}

"""Frames: trees of plain values, text, bytes and arrays as bytes. JSON and raw arrays, no pickle.

A frame is the length of its head, the head in JSON, and the arrays that the head lists, one behind
the other. Lists stand for themselves; what JSON does not know is an object with one key, its kind.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

import numpy as np

from fedtiny.errors import StrategyError

Tree = Any
"""None, a number, text, bytes, an array, or a list, tuple or dict of trees."""

Foreign = Callable[[object], tuple[str, Tree] | None]
"""The kind of an object that is no tree, and the tree that it is made of again."""

MOST_BYTES = 2**35
"""No frame is longer: a length beyond it was never sent by us."""

_HEAD, _FRAME = struct.Struct("<I"), struct.Struct("<Q")
_NUMERIC = "biufc"


class NoTreeError(TypeError):
    """Part of a value is no tree. Its message says where that is, and what stands there."""


def pack(tree: Tree, name: str = "value", foreign: Foreign = lambda value: None) -> bytes:
    """The frame of a tree. Raises NoTreeError, with ``name`` for the root."""
    arrays: list[np.ndarray[Any, Any]] = []
    plain = _Packing(arrays, foreign).plain(tree, name)
    listed = [[array.dtype.str, array.shape] for array in arrays]
    head = json.dumps([plain, listed], separators=(",", ":")).encode()
    return b"".join([_HEAD.pack(len(head)), head, *(array.tobytes() for array in arrays)])


def unpack(
    frame: bytes | memoryview, makers: Mapping[str, Callable[[Tree], object]] | None = None
) -> Tree:
    """The tree of a frame; ``makers`` make what is of a foreign kind."""
    (length,) = _HEAD.unpack_from(frame)
    at = _HEAD.size + length
    plain, listed = json.loads(bytes(frame[_HEAD.size : at]))
    arrays = []
    for dtype, shape in listed:
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(frame, dtype, count, at).reshape(shape).copy()
        arrays.append(array)
        at += array.nbytes
    return _tree(plain, arrays, makers or {})


class _Packing:
    def __init__(self, arrays: list[np.ndarray[Any, Any]], foreign: Foreign) -> None:
        self.arrays, self.foreign = arrays, foreign

    def plain(self, value: object, name: str) -> Any:
        """The value as JSON; its arrays are put aside."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        # Of exactly these types: another kind of list or dict would come back as a plain one.
        if type(value) is list:
            return self._each(value, name)
        if type(value) is tuple:
            return {"tuple": self._each(value, name)}
        if type(value) is dict:
            pairs = ((k, self.plain(v, f"{name}.{k}")) for k, v in value.items())
            return {"dict": [[self.plain(k, f"a key of {name}"), v] for k, v in pairs]}
        if type(value) is bytes:
            return {"bytes": self._aside(np.frombuffer(value, np.uint8))}
        if _is_numeric(value):
            kind = "array" if isinstance(value, np.ndarray) else "number"
            return {kind: self._aside(np.asarray(value))}
        known = self.foreign(value)
        if known is None:
            raise NoTreeError(f"{name} is a {type(value).__module__}.{type(value).__qualname__}")
        return {known[0]: self.plain(known[1], name)}

    def _each(self, values: Iterable[object], name: str) -> list[Any]:
        return [self.plain(value, f"{name}[{at}]") for at, value in enumerate(values)]

    def _aside(self, array: np.ndarray[Any, Any]) -> int:
        self.arrays.append(array)
        return len(self.arrays) - 1


def _is_numeric(value: object) -> bool:
    """Whether it is a plain array, or a number, of NumPy's."""
    plain = type(value) is np.ndarray or isinstance(value, np.generic)
    return plain and np.asarray(value).dtype.kind in _NUMERIC


def _tree(
    plain: Any, arrays: list[np.ndarray[Any, Any]], makers: Mapping[str, Callable[[Tree], object]]
) -> Tree:
    def each(values: Iterable[Any]) -> list[Tree]:
        return [_tree(value, arrays, makers) for value in values]

    if isinstance(plain, list):
        return each(plain)
    if not isinstance(plain, dict):
        return plain
    ((kind, value),) = plain.items()
    match kind:
        case "tuple":
            return tuple(each(value))
        case "dict":
            return dict(each(pair) for pair in value)
        case "bytes":
            return arrays[value].tobytes()
        case "array":
            return arrays[value]
        case "number":
            return arrays[value][()]
    return makers[kind](_tree(value, arrays, makers))


# ---- over a pipe -----------------------------------------------------------------------------


def write_frame(stream: IO[bytes], frame: bytes) -> None:
    """Send a frame."""
    stream.write(_FRAME.pack(len(frame)))
    stream.write(frame)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next frame; None if the other side is gone. Raises StrategyError for what is none."""
    head = stream.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    (length,) = _FRAME.unpack(head)
    if length > MOST_BYTES:
        raise StrategyError(
            f"between a run and its strategy came {head!r}, which is no length of a frame; let the "
            "strategy write to no descriptor but its own"
        )
    frame = stream.read(length)
    return frame if len(frame) == length else None

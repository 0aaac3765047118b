"""What is averaged: names, shapes, groups and places in one dense vector. No NumPy, no I/O."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fedtiny.errors import CompileError, DataError
from fedtiny.tensors import FLOAT_BYTES

if TYPE_CHECKING:
    from fedtiny.masks import Mask
    from fedtiny.tensors import Buffer, Float32, Int64

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of coordinates of the averaged vector, ascending, never touching."""

Coverage = tuple[Ranges, "Mask | None"]
"""What a device trained: the coordinates within the ranges that are live in the mask, if any."""


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same coordinates with as few ranges as possible."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(pair for pair in ranges if pair[0] < pair[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return tuple(merged)


def length(ranges: Ranges) -> int:
    """How many coordinates the ranges hold."""
    return sum(stop - start for start, stop in ranges)


def coordinates(ranges: Ranges) -> Int64:
    """The coordinates that the ranges hold, one by one."""
    import numpy as np

    starts, stops = np.array(ranges, np.int64).reshape(-1, 2).T
    counts = stops - starts
    before = np.cumsum(counts) - counts
    found: Int64 = np.arange(counts.sum()) + np.repeat(starts - before, counts)
    return found


LOCAL = "local"
"""The group whose parameters stay on the device."""
FROZEN = "frozen"
"""The group whose parameters are sent but never trained."""
FRESH = "fresh"
"""The group whose parameters every visit trains from their first values, to be dropped at its end:
such as a head over classes that mean something else in each task."""
UNSENT = (LOCAL, FROZEN, FRESH)
"""The groups that a device sends nothing of."""
STATISTICS = "statistics"
"""The group of the running means and variances of the normalisations that track them."""

RANGE = ".range"
"""How the name of the range of a tensor goes on behind its own."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One named array of the model. ``offset`` counts floats into the averaged vector."""

    name: str
    shape: tuple[int, ...]
    group: str = "shared"
    offset: int = 0

    @property
    def size(self) -> int:
        """Number of floats."""
        return math.prod(self.shape)

    @property
    def layer(self) -> str:
        """The name without its last part: ``fc1`` of ``fc1.weight``."""
        return self.name.rpartition(".")[0] or self.name

    @property
    def is_matrix(self) -> bool:
        """Whether it is the weight of a linear layer, [in, out]."""
        return len(self.shape) == 2


@dataclass(frozen=True)
class Layout:
    """What is averaged: names, shapes, groups and places in one dense float32 vector.

    Programs of different plan, batch, density or dtype share a Layout when they share a model.
    """

    parameters: tuple[Parameter, ...]

    @classmethod
    def of(cls, parameters: Iterable[Parameter]) -> Layout:
        """A Layout that places the parameters one behind the other."""
        placed: list[Parameter] = []
        at = 0
        for parameter in parameters:
            placed.append(replace(parameter, offset=at))
            at += parameter.size
        names = [p.name for p in placed]
        if len(set(names)) != len(names):
            raise CompileError(f"parameter names must differ; got {sorted(names)}")
        return cls(tuple(placed))

    @cached_property
    def size(self) -> int:
        """Floats of the averaged vector."""
        return sum(p.size for p in self.parameters)

    @property
    def nbytes(self) -> int:
        """Bytes of the averaged vector."""
        return FLOAT_BYTES * self.size

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups in order of appearance."""
        return tuple(dict.fromkeys(p.group for p in self.parameters))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON form."""
        return hashlib.sha256(
            json.dumps(self.to_json(), separators=(",", ":")).encode()
        ).hexdigest()

    def to_json(self) -> list[list[Any]]:
        """``[[name, shape, group], ...]``."""
        return [[p.name, list(p.shape), p.group] for p in self.parameters]

    @classmethod
    def from_json(cls, rows: Iterable[tuple[str, Iterable[int], str]]) -> Layout:
        """The inverse of `to_json`."""
        return cls.of(Parameter(name, tuple(shape), group) for name, shape, group in rows)

    @cached_property
    def _by_name(self) -> dict[str, Parameter]:
        return {p.name: p for p in self.parameters}

    def __getitem__(self, name: str) -> Parameter:
        if name not in self._by_name:
            raise KeyError(f"no parameter {name!r}; there are {list(self._by_name)}")
        return self._by_name[name]

    def layers(self) -> Mapping[str, tuple[Parameter, ...]]:
        """The parameters of each layer, in order."""
        found: dict[str, tuple[Parameter, ...]] = {}
        for p in self.parameters:
            found[p.layer] = (*found.get(p.layer, ()), p)
        return found

    def ranges(self, names: Iterable[str]) -> Ranges:
        """The coordinates of the named parameters."""
        return merge_ranges((self[n].offset, self[n].offset + self[n].size) for n in names)

    @cached_property
    def statistics_floats(self) -> int:
        """Floats of the running statistics: what a calibration returns for each candidate."""
        return sum(p.size for p in self.parameters if p.group == STATISTICS)

    @cached_property
    def activations(self) -> tuple[Parameter, ...]:
        """The ranges, (lo, hi) each, within which int8 holds activations."""
        frozen = (p for p in self.parameters if p.group == FROZEN)
        return tuple(p for p in frozen if p.name.endswith(RANGE) and p.shape == (2,))

    @cached_property
    def local_ranges(self) -> Ranges:
        """The coordinates that stay on the device."""
        return self.ranges(p.name for p in self.parameters if p.group == LOCAL)

    def flatten(self, state: Mapping[str, Any]) -> Float32:
        """The averaged vector (float32) of a mapping from parameter name to array.

        Raises DataError when a name is missing or unknown or a shape differs.
        """
        import numpy as np

        expected = {p.name for p in self.parameters}
        if not isinstance(state, Mapping):
            raise DataError(f"a {type(state).__name__} is no mapping from names to arrays")
        if set(state) != expected:
            raise DataError(
                f"the state has the arrays {sorted(state)}, the model has {sorted(expected)}"
            )
        vector = np.empty(self.size, np.float32)
        for p in self.parameters:
            array = np.asarray(state[p.name])
            if array.shape != p.shape:
                raise DataError(f"{p.name} has shape {array.shape}, the model needs {p.shape}")
            vector[p.offset : p.offset + p.size] = array.reshape(-1)
        return vector

    def unflatten(self, vector: Buffer) -> dict[str, Float32]:
        """Arrays by parameter name: copies, so that they outlive the vector."""
        import numpy as np

        flat = np.asarray(vector, dtype=np.float32).reshape(-1)
        if flat.size != self.size:
            raise DataError(f"the vector has {flat.size} floats, the model has {self.size}")
        return {
            p.name: flat[p.offset : p.offset + p.size].reshape(p.shape).copy()
            for p in self.parameters
        }

"""Flat float32 vectors, with NumPy where it is installed and without it where it is not.

A vector on a device is any buffer of little-endian float32. `vector` gives it the friendliest
face that the machine has: a NumPy array, else a `memoryview` of format ``f``.
"""

from __future__ import annotations

import math
import sys
from array import array
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from fedtiny.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Buffer as _Buffer

    # NumPy's stubs call an array a Buffer from Python 3.12 on only.
    Buffer = _Buffer | npt.NDArray[Any]

    Float32 = npt.NDArray[np.float32]
    Float64 = npt.NDArray[np.float64]
    Int8 = npt.NDArray[np.int8]
    Int32 = npt.NDArray[np.int32]
    Int64 = npt.NDArray[np.int64]
    UInt32 = npt.NDArray[np.uint32]
    Bools = npt.NDArray[np.bool_]
    Vector = Float32 | memoryview[float]

FLOAT_BYTES = 4


def has_numpy() -> bool:
    """Whether NumPy can be imported here."""
    if "numpy" in sys.modules:
        return sys.modules["numpy"] is not None
    return find_spec("numpy") is not None


def raw(buffer: Buffer) -> memoryview[int]:
    """The buffer's bytes; shares the memory."""
    view = memoryview(cast("Any", buffer))
    return view.cast("B") if view.nbytes else memoryview(b"")


def float_view(buffer: Buffer) -> memoryview[float]:
    """The buffer's bytes as a flat view of float32; shares the memory."""
    return raw(buffer).cast("f")


def int_view(buffer: Buffer) -> memoryview[int]:
    """The buffer's bytes as a flat view of int32; shares the memory."""
    return raw(buffer).cast("i")


def zeros(count: int) -> memoryview[float]:
    """A new writeable vector of ``count`` zeros."""
    return float_view(bytearray(count * FLOAT_BYTES))


def floats(values: Any) -> memoryview[float]:
    """A flat float32 view of an array of float32 or of raw bytes, or of a copy of other numbers.

    A float64 array is rounded to float32, as a device would store it. Raises DataError for what
    are no numbers, and for lists of lists.
    """
    return float_view(_typed(values, "f"))


def ints(values: Any) -> memoryview[int]:
    """A flat int32 view of an array of int32 or of raw bytes, or of a copy of other integers.

    Raises DataError for what are no integers, for those that int32 does not hold, and for lists
    of lists.
    """
    return int_view(_typed(values, "i"))


_TYPES = {"f": "float32", "i": "int32"}


def _typed(values: Any, form: str) -> Buffer:
    if isinstance(values, bytes | bytearray):
        return values
    try:
        return _contiguous(values, form)
    except (TypeError, ValueError, OverflowError, NotImplementedError) as error:
        kind = type(values).__name__
        flaw = f"the {kind} cannot be read as {_TYPES[form]}"
        raise DataError(f"{flaw}: {error}", public=flaw) from None


def _contiguous(values: Any, form: str) -> Buffer:
    """The values themselves, or a copy where they are not in a row or of another type."""
    try:
        view = memoryview(values)
    except TypeError:  # a plain sequence of numbers, or an array of another library
        if not hasattr(values, "__array__"):
            return array(form, values)
        return _contiguous(values.__array__(), form)
    if view.format == form and view.c_contiguous:
        return view
    if form == "f" and has_numpy():
        import numpy as np

        return np.ascontiguousarray(values, dtype=np.float32)
    flat = view if view.ndim == 1 else memoryview(view.tobytes()).cast(cast("Any", view.format))
    return array(form, flat.tolist())


def vector(buffer: Buffer) -> Vector:
    """The buffer as a NumPy float32 array, or as a memoryview where NumPy is absent; no copy."""
    if not has_numpy():
        return float_view(buffer)
    import numpy as np

    return np.frombuffer(raw(buffer), dtype=np.float32)


def all_finite(view: memoryview[float]) -> bool:
    """Whether no value is NaN or infinite."""
    if not has_numpy():
        return all(map(math.isfinite, view))
    import numpy as np

    return bool(np.isfinite(np.asarray(view)).all())

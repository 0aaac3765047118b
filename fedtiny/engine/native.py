"""The native executor: the C99 runtime behind the face of an executor.

The library is the best of ``runtime/lib`` for this processor. The environment variable
``FEDTINY_RUNTIME`` names another one: a variant (``v1``) or the path of a shared library. All
variants compute the same bits. Needs no NumPy.
"""

from __future__ import annotations

import ctypes
import math
import os
import warnings
from collections.abc import Mapping
from ctypes import POINTER, byref, c_double, c_float, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from fedtiny.engine.image import I8, Tables, read_image
from fedtiny.engine.program import (
    Moments,
    check_capacity,
    check_growth,
    check_hyper,
    check_labels,
    check_mask_bytes,
)  # fmt: skip
from fedtiny.errors import DataError, ImageError, RunError
from fedtiny.tensors import FLOAT_BYTES, raw

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fedtiny.engine.program import Hyper
    from fedtiny.tensors import Buffer

    Memory = ctypes.Array[ctypes.c_char]

ABI = 5
USE_CORRECTION, KEEP_STATISTICS = 1, 2  # of ft_hyper.flags
LIBRARIES = Path(__file__).with_name("runtime") / "lib"
NO_RUNTIME = "no C runtime: running on the reference executor, which is slow"
REBUILD = "install a C compiler and run python -m fedtiny.engine.runtime.build"

# What x86-64-v3 stands for, in the words of /proc/cpuinfo.
_V3_FLAGS = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
_ALIGNMENT = 64  # a cache line: no eight lanes of an aligned tensor cross two

_AGAIN = "fetch the image again"
_COMPILE = "compile the model again with this version of fedtiny"


class Status(IntEnum):
    """``ft_status``: the codes, what each means, and what to do about it."""

    meaning: str
    remedy: str

    def __new__(cls, code: int, meaning: str = "", remedy: str = "") -> Status:  # noqa: D102
        status = int.__new__(cls, code)
        status._value_, status.meaning, status.remedy = code, meaning, remedy
        return status

    OK = 0, "it ran", ""
    SIZE = 1, "it is shorter than it says, or not aligned", _AGAIN
    MAGIC = 2, "it is not a Program image", "name an image that fedtiny compiled"
    VERSION = 3, "this runtime reads images of version 4", _COMPILE
    CHECKSUM = 4, "its bytes do not have its checksum", _AGAIN
    HEADER = 5, "a table lies outside, or a figure of the header is impossible", _COMPILE
    TENSOR = 6, "a tensor lies outside its region or has an impossible shape", _COMPILE
    PARAM = 7, "a parameter lies outside the vector, the memory or the state", _COMPILE
    OP = 8, "an op has an unknown code, operand or attribute", _COMPILE
    SHAPE = 9, "the tensors of an op do not fit together", _COMPILE
    REGION = 10, "an op writes where it may not, or over what it reads", _COMPILE
    LABEL = 11, "a class label lies outside the Program's outputs", "relabel the samples"
    MEMORY = 12, "the memory is smaller than the plan", "give it what the plan says"
    FEATURE = 13, "a phase needs what the Program did not reserve", "compile it with that sgd="
    NOT_FINITE = 14, "a visit ended with NaN or infinity", "lower the learning rate, or clip"
    BOUND = 15, "a visit moved further than the fold's bound", "lower the learning rate"
    EMPTY = 16, "a visit has no samples in a part that it should train on", "give it some"
    FLEET = 17, "the samples do not fit the Program, or a row lies outside them", "mend the rows"
    MASK = 18, "the mask has more live weights than the pool holds", "send that of its density"


class ProgramStruct(ctypes.Structure):
    """``ft_program``."""

    _fields_ = (
        ("header", c_void_p),
        ("tensors", c_void_p),
        ("params", c_void_p),
        ("ops", c_void_p),
    )


class MemoryStruct(ctypes.Structure):
    """``ft_memory``."""

    _fields_ = tuple((name, c_void_p) for name in ("params", "arena", "state", "scratch", "frozen"))


class HyperStruct(ctypes.Structure):
    """``ft_hyper``."""

    _fields_ = (
        ("lr", c_float), ("momentum", c_float), ("weight_decay", c_float), ("clip", c_float),
        ("prox", c_float), ("groups", c_uint32), ("flags", c_uint32), ("step", c_uint32),
        ("run", c_uint64), ("round", c_uint32), ("device", c_uint32),
    )  # fmt: skip

    @classmethod
    def of(cls, h: Hyper) -> HyperStruct:
        """The hyper-parameters of one phase."""
        flags = USE_CORRECTION * h.correction | KEEP_STATISTICS * h.keep_statistics
        return cls(h.lr, h.momentum, h.weight_decay, h.clip, h.prox, h.groups, flags)


class ScoreStruct(ctypes.Structure):
    """``ft_score``."""

    _fields_ = (("loss_sum", c_double), ("count", c_uint32), ("correct", c_uint32))


class PlaceStruct(ctypes.Structure):
    """``ft_place``."""

    _fields_ = (("at", c_uint32), ("g", c_float))


class MomentsStruct(ctypes.Structure):
    """``ft_moments``."""

    _fields_ = (
        ("count", c_uint64), ("sum", c_double), ("sum_squares", c_double), ("min", c_float),
        ("max", c_float),
    )  # fmt: skip


Prototypes = Mapping[str, tuple[Any, tuple[Any, ...]]]
"""Of each function: what it returns, and what it takes."""

_CALL = (POINTER(ProgramStruct), POINTER(MemoryStruct))
_PROTOTYPES: Prototypes = {
    "ft_check": (c_int, (c_void_p, c_size_t, POINTER(ProgramStruct))),
    "ft_scratch_bytes": (c_size_t, _CALL[:1]),
    "ft_quantise": (None, (c_void_p, c_uint32, c_float, c_float, c_void_p)),
    "ft_load_mask": (c_int, (*_CALL, c_void_p)),
    "ft_live_floats": (c_uint32, _CALL),
    "ft_load_live": (None, (*_CALL, c_void_p)),
    "ft_store_live": (None, (*_CALL, c_void_p)),
    "ft_observe": (None, (*_CALL, c_void_p, POINTER(c_double))),
    "ft_grow": (c_int, (*_CALL, *(c_void_p for _ in range(5)))),
    "ft_load": (None, (*_CALL, c_void_p)),
    "ft_clear_momentum": (None, _CALL),
    "ft_load_correction": (None, (*_CALL, c_void_p)),
    "ft_store": (None, (*_CALL, c_void_p)),
    "ft_store_gradient": (None, (*_CALL, c_void_p)),
    "ft_step": (c_int, (*_CALL, c_void_p, c_void_p, POINTER(HyperStruct), POINTER(c_float))),
    "ft_predict": (c_void_p, (*_CALL, c_void_p)),
    "ft_evaluate": (c_int, (*_CALL, c_void_p, c_void_p, c_uint32, POINTER(ScoreStruct))),
    "ft_calibrate": (None, (*_CALL, c_void_p, c_uint32, POINTER(MomentsStruct))),
}


# ---- the library -----------------------------------------------------------------------------


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


def _candidates() -> Iterable[Path]:
    wanted = os.environ.get("FEDTINY_RUNTIME")
    if wanted and os.sep in wanted:
        return [Path(wanted)]
    variants = ["v3", "v1", "base"] if _cpu_flags() >= _V3_FLAGS else ["v1", "base"]
    return [LIBRARIES / f"libfedtiny_{name}.so" for name in ([wanted] if wanted else variants)]


@cache
def library() -> ctypes.CDLL:
    """The best library for this processor, with its prototypes.

    Raises RunError if there is none, or one of another version.
    """
    paths = list(_candidates())
    path = next((p for p in paths if p.exists()), None)
    if path is None:
        where = paths[0] if len(paths) == 1 else paths[0].with_name("libfedtiny_*.so")
        raise RunError(f"there is no native runtime at {where}; {REBUILD}")
    try:
        loaded = ctypes.CDLL(str(path))
        abi = int(loaded.ft_abi())
    except (OSError, AttributeError) as error:
        raise RunError(f"the native runtime cannot be loaded: {error}; {REBUILD}") from error
    if abi != ABI:
        raise RunError(f"{path} has ABI {abi}, this fedtiny needs {ABI}; {REBUILD}")
    return declare(loaded, _PROTOTYPES)


def declare(loaded: ctypes.CDLL, prototypes: Prototypes) -> ctypes.CDLL:
    """The library itself, its functions told what they take and return."""
    for name, (result, arguments) in prototypes.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


@cache
def available() -> bool:
    """Whether there is a native runtime here; warns once if there is none."""
    try:
        library()
    except RunError as error:
        warnings.warn(f"{NO_RUNTIME}; {error}", RuntimeWarning, stacklevel=2)
        return False
    return True


# ---- memory and buffers ----------------------------------------------------------------------


def aligned(nbytes: int) -> Memory:
    """Zeroed memory that starts at a cache line."""
    room = (ctypes.c_char * (nbytes + _ALIGNMENT))()
    start = -ctypes.addressof(room) % _ALIGNMENT
    return (ctypes.c_char * nbytes).from_buffer(room, start)


def _byte_view(name: str, buffer: Buffer, shape: tuple[int, ...], form: str) -> memoryview[int]:
    """The bytes of a caller's buffer; DataError unless it holds this many float32 or int32."""
    view = memoryview(cast("Any", buffer))
    nbytes = math.prod(shape) * FLOAT_BYTES
    if view.format in (form, "<" + form, "B") and view.c_contiguous and view.nbytes == nbytes:
        return raw(buffer)
    kind = {"f": "float32", "i": "int32"}[form]
    raise DataError(
        f"{name} must be {math.prod(shape)} contiguous values of {kind} (shape {shape}); got "
        f"{view.nbytes} bytes of format {view.format!r} and shape {view.shape}"
    )


def _copied(view: memoryview[int]) -> Any:
    return (ctypes.c_char * view.nbytes).from_buffer_copy(view)


class _Batch:
    """A place for one batch that the runtime can read: aligned, and of the right size."""

    def __init__(self, name: str, shape: tuple[int, ...], form: str) -> None:
        self.name, self.shape, self.form = name, shape, form
        self.memory = aligned(math.prod(shape) * FLOAT_BYTES)
        self._bytes = memoryview(self.memory).cast("B")

    def take(self, buffer: Buffer) -> Memory:
        """Copy a caller's buffer in."""
        self._bytes[:] = _byte_view(self.name, buffer, self.shape, self.form)
        return self.memory


class _Quantised:
    """The same for a batch of float32 that the runtime reads as int8, by the model's range."""

    def __init__(self, shape: tuple[int, ...], frozen: Memory, scale_at: int) -> None:
        self._batch, self._count = _Batch("x", shape, "f"), math.prod(shape)
        self._scale = (c_float * 2).from_buffer(frozen, scale_at)
        self.memory = aligned(self._count)

    def take(self, buffer: Buffer) -> Memory:
        """Quantise a caller's buffer."""
        x, scale = self._batch.take(buffer), self._scale
        library().ft_quantise(x, self._count, scale[0], scale[1], self.memory)
        return self.memory


def check_image(image: bytes) -> tuple[Memory, ProgramStruct]:
    """Aligned memory that holds the image, and the tables in it, after the runtime has checked
    every byte.

    Raises ImageError with the status, what it means, and what to do.
    """
    memory, program = aligned(len(image)), ProgramStruct()
    memoryview(memory).cast("B")[:] = image
    status = Status(library().ft_check(memory, len(image), byref(program)))
    if status:
        raise ImageError(
            f"the image of {len(image)} bytes is refused: {status.meaning} (FT_E_{status.name}); "
            f"{status.remedy}"
        )
    return memory, program


# ---- the executor ----------------------------------------------------------------------------


class NativeExecutor:
    """One Program with its memory, executed by the C99 runtime.

    Args:
        image: A Program image; ImageError if the runtime refuses it.
    """

    def __init__(self, image: bytes) -> None:
        self._library = library()
        self._image, self._program = check_image(image)
        self.tables = tables = read_image(image)
        self._params = aligned(tables.param_floats * FLOAT_BYTES)
        self._arena = aligned(tables.arena_bytes)
        self._state = aligned(tables.state_floats * FLOAT_BYTES)
        self._scratch = aligned(self._library.ft_scratch_bytes(byref(self._program)))
        self._frozen = aligned(tables.frozen_words * FLOAT_BYTES)
        rooms = (self._params, self._arena, self._state, self._scratch, self._frozen)
        self._memory = MemoryStruct(*map(ctypes.addressof, rooms))
        self._call = byref(self._program), byref(self._memory)
        self._x, self._y = _batches(tables, self._frozen)
        self._loss = c_float()
        self._hyper: tuple[HyperStruct, Hyper | None] = HyperStruct(), None
        self._stream, self._steps = (0, 0, 0), 0

    # -- parameters --

    def load_mask(self, bits: bytes) -> None:
        """Make the coordinates of these bits live, as far as they can be pruned."""
        check_mask_bytes(self.tables, bits)
        if self._library.ft_load_mask(*self._call, bits):
            check_capacity(self.tables, self.tables.live_weights(bits))

    def load(self, vector: Buffer) -> None:
        """Take the averaged vector; remember it as the base; clear the momentum."""
        self._library.ft_load(*self._call, self._vector(vector))
        self._steps = 0

    def load_live(self, values: Buffer) -> None:
        """The same, of a compact vector."""
        floats = self._library.ft_live_floats(*self._call)
        view = _byte_view("the compact vector", values, (floats,), "f")
        self._library.ft_load_live(*self._call, _copied(view))
        self._steps = 0

    def store_live(self) -> bytearray:
        """The compact vector."""
        floats = self._library.ft_live_floats(*self._call)
        return self._stored(self._library.ft_store_live, floats)

    def load_correction(self, vector: Buffer) -> None:
        """Take the linear correction, in the order of the averaged vector."""
        self._library.ft_load_correction(*self._call, self._vector(vector))

    def seed(self, run: int, round: int, device: int) -> None:
        """Whose visit this is; its steps are counted from 0."""
        self._stream, self._steps = (run, round, device), 0

    def clear_momentum(self) -> None:
        """Forget the momentum."""
        self._library.ft_clear_momentum(*self._call)

    def store(self) -> bytearray:
        """The averaged vector; coordinates without a parameter are 0."""
        return self._stored(self._library.ft_store, self.tables.vector_floats)

    def store_gradient(self) -> bytearray:
        """The momentum in the order of the averaged vector; 0 where nothing trains."""
        return self._stored(self._library.ft_store_gradient, self.tables.vector_floats)

    # -- samples --

    def step(self, x: Buffer, y: Buffer, hyper: Hyper) -> float:
        """Train on one batch; returns its mean loss before the update."""
        status = self._library.ft_step(
            *self._call, self._x.take(x), self._y.take(y), self._c_hyper(hyper), byref(self._loss)
        )
        if status:
            self._refuse(status, hyper)
        self._steps += 1
        return self._loss.value

    def predict(self, x: Buffer) -> memoryview[float]:
        """The output of one batch."""
        address = self._library.ft_predict(*self._call, self._x.take(x))
        size = math.prod(self.tables.tensors[self.tables.output].shape)
        return memoryview(ctypes.string_at(address, size * FLOAT_BYTES)).cast("f")

    def evaluate(self, x: Buffer, y: Buffer, valid: int) -> tuple[float, int, int]:
        """Sum of losses, count, correct answers over the first ``valid`` samples of one batch."""
        score = ScoreStruct()
        status = self._library.ft_evaluate(
            *self._call, self._x.take(x), self._y.take(y), valid, byref(score)
        )
        if status:
            self._refuse(status)
        return score.loss_sum, score.count, score.correct

    def calibrate(self, x: Buffer, valid: int) -> list[Moments]:
        """The moments of every forward op's output over the first ``valid`` samples."""
        found = (MomentsStruct * self.tables.n_forward)()
        self._library.ft_calibrate(*self._call, self._x.take(x), valid, found)
        return [Moments(m.count, m.sum, m.sum_squares, m.min, m.max) for m in found]

    def observe(self, x: Buffer) -> list[float]:
        """The sums of the inputs of the tracked normalisations by channel, and of their squares."""
        sums = (c_double * self.tables.statistics_floats)()
        self._library.ft_observe(*self._call, self._x.take(x), sums)
        return list(sums)

    def grow(self, x: Buffer, y: Buffer, most: Sequence[int]) -> list[tuple[int, float]]:
        """The dead coordinates with the largest gradients of one batch, ascending."""
        check_growth(self.tables, most)
        wanted, found = (c_uint32 * len(most))(*most), (c_uint32 * len(most))()
        places = (PlaceStruct * sum(most))()
        status = self._library.ft_grow(
            *self._call, self._x.take(x), self._y.take(y), wanted, places, found
        )
        if status:
            self._refuse(status)
        starts = accumulate(most, initial=0)
        rows = (places[i : i + n] for i, n in zip(starts, found, strict=False))
        return [(place.at, place.g) for row in rows for place in row]

    # -- what it needs for that --

    def _vector(self, buffer: Buffer) -> Any:
        return _copied(_byte_view("the vector", buffer, (self.tables.vector_floats,), "f"))

    def _stored(self, function: Any, floats: int) -> bytearray:
        stored = bytearray(floats * FLOAT_BYTES)
        function(*self._call, (ctypes.c_char * len(stored)).from_buffer(stored))
        return stored

    def _c_hyper(self, hyper: Hyper) -> Any:
        """The structure of a phase's hyper-parameters, which stay the same for many steps."""
        made, of = self._hyper
        if of is not hyper:
            made = HyperStruct.of(hyper)
            self._hyper = made, hyper
        made.run, made.round, made.device = self._stream
        made.step = self._steps
        return byref(made)

    def _refuse(self, status: int, hyper: Hyper | None = None) -> NoReturn:
        """Raise why the runtime refused the batch, in the words of every executor."""
        if hyper:
            check_hyper(self.tables, hyper)
        check_labels(self.tables, memoryview(self._y.memory).cast("B").cast("i"))
        raise RunError(f"the runtime refused the batch: {Status(status).meaning}")


def _batches(tables: Tables, frozen: Memory) -> tuple[_Batch | _Quantised, _Batch]:
    x, y = tables.tensors[tables.input], tables.tensors[tables.label]
    labels = _Batch("y", y.shape, "i" if y.dtype else "f")
    if x.dtype != I8:
        return _Batch("x", x.shape, "f"), labels
    return _Quantised(x.shape, frozen, tables.tensors[x.scale].offset), labels

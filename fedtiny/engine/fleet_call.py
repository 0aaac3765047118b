"""Whole visits of many simulated devices in one call of the C runtime for each thread.

The structures are those of ``runtime/host/ft_fleet.h``, field for field. A call never copies the
caller's arrays, and builds what does not change from round to round once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_double, c_float, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

import numpy as np

from fedtiny.engine.native import (
    HyperStruct,
    ScoreStruct,
    Status,
    aligned,
    check_image,
    declare,
    library,
)  # fmt: skip
from fedtiny.engine.program import check_capacity, check_hyper, check_ranges
from fedtiny.errors import DataError, RunError
from fedtiny.values import EVALUATE, GRADIENT, QUERY, TRAIN, Instruction, Phase

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import numpy.typing as npt

    from fedtiny.engine.native import Memory, Prototypes
    from fedtiny.engine.program import Program
    from fedtiny.fold import FoldRule
    from fedtiny.masks import Mask
    from fedtiny.tensors import Bools, Float32, Float64, Int64

    Array = npt.NDArray[Any]
    UInt32 = npt.NDArray[np.uint32]

SHUFFLED, RETURN_GRADIENT = 1, 2
EVALUATE_BEFORE, EVALUATE_AFTER = 1, 2
ROWS_TASK, SINE_TASK = 0, 1
MACS_A_THREAD = 16_000
"""Visits whose single steps have fewer multiply-adds together are not worth waking a thread for."""

_PROTOTYPES: Prototypes = {
    "ft_fleet_run": (c_int, (c_void_p, c_uint32, c_uint32, c_void_p, c_size_t, c_void_p)),
    "ft_fleet_memory_bytes": (c_size_t, (c_void_p,)),
}


class Rows(Protocol):
    """Samples as rows of one array; part p of visit v is ``rows[starts[2v + p] : ...]``.

    ``x`` [rows, features] float32; ``y`` [rows, outputs] float32, or None when there is one of
    the int32 ``labels`` for each entry of ``rows``.
    """

    @property
    def x(self) -> Float32: ...  # noqa: D102
    @property
    def y(self) -> Float32 | None: ...  # noqa: D102
    @property
    def labels(self) -> npt.NDArray[np.int32] | None: ...  # noqa: D102
    @property
    def rows(self) -> UInt32: ...  # noqa: D102
    @property
    def starts(self) -> UInt32: ...  # noqa: D102


class Sine(Protocol):
    """The recipe of y = A sin(x + phi); the C runtime makes the samples itself."""

    @property
    def amplitude(self) -> tuple[float, float]: ...  # noqa: D102
    @property
    def phase(self) -> tuple[float, float]: ...  # noqa: D102
    @property
    def domain(self) -> tuple[float, float]: ...  # noqa: D102
    @property
    def support(self) -> int: ...  # noqa: D102
    @property
    def query(self) -> int: ...  # noqa: D102


class PhaseStruct(ctypes.Structure):
    """``ft_phase``."""

    _fields_ = [
        ("hyper", HyperStruct),
        *((name, c_uint32) for name in ("part", "steps", "flags")),
    ]


class TaskStruct(ctypes.Structure):
    """``ft_task``."""

    _fields_ = [
        ("kind", c_uint32),
        *((name, c_void_p) for name in ("x", "y", "labels", "rows", "starts")),
        *((name, c_uint32) for name in ("features", "outputs", "n_rows", "n_positions")),
        *((name, c_float * 2) for name in ("amplitude", "phase", "domain")),
        *((name, c_uint32) for name in ("support", "query")),
    ]


class FleetStruct(ctypes.Structure):
    """``ft_fleet``."""

    _fields_ = [
        *(("image", c_void_p), ("image_bytes", c_size_t), ("base", c_void_p)),
        *(("correction", c_void_p), ("phases", c_void_p), ("n_phases", c_uint32)),
        *(("evaluate", c_uint32), ("task", TaskStruct), ("run", c_uint64), ("round", c_uint32)),
        *(("device", c_void_p), ("n_visits", c_uint32), ("local", c_void_p)),
        *(("personal", c_void_p), ("fold_mask", c_void_p), ("weight", c_void_p)),
        *(("scale", c_double), ("bound", c_double), ("norm_bound", c_double)),
        ("mask", c_void_p),
        *(("vectors", c_void_p), ("outcomes", c_void_p)),
    ]


class OutcomeStruct(ctypes.Structure):
    """``ft_outcome``."""

    _fields_ = [
        *(("status", c_uint32), ("steps", c_uint32), ("loss_sum", c_double)),
        *(("moved", c_double), ("squared_norm", c_double)),
        *(("before", ScoreStruct), ("after", ScoreStruct)),
    ]


OUTCOME = np.dtype(OutcomeStruct)
"""One row a visit; `before` and `after` are scores on the query."""


@dataclass(frozen=True, slots=True, eq=False)
class Visits:
    """What a cohort did. A visit whose status is not OK has not been folded.

    ``sums``: int64 over the averaged vector, or None without a fold rule; ``outcomes``: OUTCOME,
    one a visit; ``vectors`` [visits, floats]: trained values or gradients, None if not asked for.
    """

    sums: Int64 | None
    outcomes: Array
    vectors: Float32 | None


class FleetCall:
    """One Program, ready to run visits on some threads: this one, and others of a pool.

    Args:
        program: What the devices run.
        pool: The other threads; its maker closes it, and may share it among Programs.
        threads: How many ranges of visits to run side by side.
    """

    def __init__(self, program: Program, pool: ThreadPoolExecutor, threads: int = 1) -> None:
        self.program = program
        self._library = declare(library(), _PROTOTYPES)
        self._pool, self._threads = pool, threads
        self._least_visits = max(1, MACS_A_THREAD // program.report()["macs_per_step"])
        self._image, _ = check_image(program.image)
        self._local = _stays(program)
        self._folded: Array | None = None
        self._live: Array | None = None
        self._fleet = FleetStruct(
            image=ctypes.addressof(self._image), image_bytes=len(self._image),
            local=_address(self._local),
        )  # fmt: skip
        task = self._fleet.task
        task.features = _row_floats(program, program.tables.input)
        task.outputs = _row_floats(program, program.tables.label)
        self._asked: tuple[Instruction, Mask | None] | None = None
        self._kept: tuple[Any, ...] = ()
        self._memories: dict[tuple[int, ...], list[Memory]] = {}

    def run(
        self,
        instruction: Instruction,
        task: Rows | Sine,
        base: Float32,
        run: int,
        round: int,
        device: npt.ArrayLike,
        *,
        rule: FoldRule | None = None,
        weight: Float64 | None = None,
        personal: Float32 | None = None,
        mask: Mask | None = None,
        keep_vectors: bool = False,
    ) -> Visits:
        """One visit of each device, in this order.

        Args:
            instruction: Of kind ``train`` or ``evaluate``.
            task: The samples of these visits.
            base: The model sent out.
            run: The seed of the run.
            round: The round, for the counter generator.
            device: The devices' indices.
            rule: The fixed point in which deltas are summed; None folds nothing.
            weight: One of ``rule.weights`` for each visit; needed with a rule.
            personal: float32 [visits, floats], the devices' own coordinates; changed in place.
            mask: Which coordinates are live; given if, and only if, the Program has a pool.
            keep_vectors: Return each visit's vector as well.

        Raises DataError when an array does not fit or int8 has no ranges of activations, RunError
        when the runtime refuses the call.
        """
        fleet, size = self._fleet, self.program.layout.size
        devices = np.ascontiguousarray(device, np.uint32)
        count = len(devices)
        base = _fitting("model", base, np.float32, (size,))
        check_ranges(self.program, base)
        outcomes = np.zeros(count, OUTCOME)
        vectors = np.zeros((count, size), np.float32) if keep_vectors else None
        self._set_asked(instruction, mask)
        self._set_task(task, count)
        self._set_fold(rule, weight, count)
        fleet.personal = None
        if personal is not None and self._local is not None:
            fleet.personal = _address(_fitting("personal", personal, np.float32, (count, size)))
        fleet.base, fleet.device, fleet.n_visits = _address(base), _address(devices), count
        fleet.run, fleet.round = run, round
        fleet.vectors, fleet.outcomes = _address(vectors), _address(outcomes)
        sums = self._call(count, size if rule is not None else 0)
        return Visits(sums if rule is not None else None, outcomes, vectors)

    def _set_asked(self, instruction: Instruction, mask: Mask | None) -> None:
        if (instruction, mask) == self._asked:
            return
        self._asked = None  # until both are set
        self._set_instruction(instruction)
        self._set_coverage(instruction, mask)
        self._asked = instruction, mask

    def _set_instruction(self, instruction: Instruction) -> None:
        if instruction.kind not in (TRAIN, EVALUATE):
            raise RunError(f"a fleet call runs train or evaluate, not {instruction.kind!r}")
        phases = [self._phase(phase) for phase in instruction.phases]
        if phases and instruction.kind == TRAIN and instruction.returns == GRADIENT:
            phases[-1].flags |= RETURN_GRADIENT
        array = (PhaseStruct * len(phases))(*phases)
        correction = None
        if instruction.correction is not None:
            sent = np.frombuffer(instruction.correction, np.float32)
            correction = _fitting("correction", sent, np.float32, (self.program.layout.size,))
        fleet = self._fleet
        fleet.phases, fleet.n_phases = ctypes.addressof(array), len(phases)
        fleet.correction = _address(correction)
        fleet.evaluate = 0
        if instruction.kind == EVALUATE:
            fleet.evaluate = EVALUATE_BEFORE | (EVALUATE_AFTER if phases else 0)
        self._kept = array, correction

    def _set_coverage(self, instruction: Instruction, mask: Mask | None) -> None:
        """The live coordinates, of which those that the instruction sends are folded."""
        if bool(self.program.capacity) != (mask is not None):
            how = "with the mask of that density" if mask is None else "without a mask"
            raise DataError(f"a Program of density {self.program.density:g} runs {how}")
        folded = _sent(self.program, instruction)
        if mask is not None:
            self._check_mask(mask)
            self._live = np.frombuffer(mask.bits, np.uint8)
            folded &= mask.bools
        self._folded = None if folded.all() else folded.view(np.uint8)
        self._fleet.mask, self._fleet.fold_mask = _address(self._live), _address(self._folded)

    def _check_mask(self, mask: Mask) -> None:
        tables = self.program.tables
        if mask.size != tables.vector_floats:
            raise DataError(
                f"the mask has {mask.size} coordinates and the model {tables.vector_floats}"
            )
        check_capacity(tables, tables.live_weights(mask.bits))

    def _phase(self, phase: Phase) -> PhaseStruct:
        return PhaseStruct(
            HyperStruct.of(self.program.hyper(phase)),
            *(int(phase.part == QUERY), phase.steps, SHUFFLED if phase.shuffle else 0),
        )

    def _set_task(self, task: Rows | Sine, count: int) -> None:
        if hasattr(task, "rows"):
            self._set_rows(cast("Rows", task), count)
        else:
            self._set_sine(task)

    def _set_sine(self, task: Sine) -> None:
        struct = self._fleet.task
        struct.kind, struct.labels = SINE_TASK, None
        struct.amplitude, struct.phase, struct.domain = task.amplitude, task.phase, task.domain
        struct.support, struct.query = task.support, task.query

    def _set_rows(self, task: Rows, count: int) -> None:
        struct, positions = self._fleet.task, len(task.rows)
        x = _fitting("x", task.x, np.float32, (len(task.x), struct.features))
        struct.kind, struct.x, struct.n_rows = ROWS_TASK, _address(x), len(x)
        struct.y = struct.labels = None
        if task.labels is not None:
            struct.labels = _address(_fitting("labels", task.labels, np.int32, (positions,)))
        elif task.y is not None:
            struct.y = _address(_fitting("y", task.y, np.float32, (len(x), struct.outputs)))
        struct.rows = _address(_fitting("rows", task.rows, np.uint32, (positions,)))
        struct.starts = _address(_fitting("starts", task.starts, np.uint32, (2 * count + 1,)))
        struct.n_positions = positions

    def _set_fold(self, rule: FoldRule | None, weight: Float64 | None, count: int) -> None:
        fleet = self._fleet
        if rule is None:
            fleet.weight, fleet.bound, fleet.norm_bound = None, np.inf, 0.0
            return
        fleet.weight = _address(_fitting("weight", weight, np.float64, (count,)))
        fleet.scale, fleet.bound, fleet.norm_bound = rule.scale, rule.bound, rule.norm_bound

    def _call(self, count: int, size: int) -> Int64:
        """One C call for each thread over neighbouring visits; the added sums."""
        threads = max(1, min(self._threads, count // self._least_visits))
        cuts = [count * i // threads for i in range(threads + 1)]
        sums = np.zeros((threads, size), np.int64)
        parts = list(zip(cuts, cuts[1:], self._rooms(), sums, strict=False))
        others = [self._pool.submit(self._call_part, *part) for part in parts[1:]]
        statuses = [self._call_part(*parts[0]), *(other.result() for other in others)]
        for status in filter(None, statuses):
            self._refuse(Status(status))
        return sums[0] if threads == 1 else np.asarray(sums.sum(axis=0))

    def _call_part(self, first: int, last: int, memory: Memory, sums: Int64) -> int:
        sums_at = _address(sums) if sums.size else None
        fleet, room = ctypes.addressof(self._fleet), ctypes.addressof(memory)
        return int(self._library.ft_fleet_run(fleet, first, last, room, len(memory), sums_at))

    def _refuse(self, status: Status) -> NoReturn:
        for phase in self._asked[0].phases if self._asked else ():
            check_hyper(self.program.tables, self.program.hyper(phase))
        raise RunError(f"the fleet call is refused: {status.meaning}; {status.remedy}")

    def _rooms(self) -> Sequence[Memory]:
        """Memory for each thread; it depends on the samples that a visit makes for itself."""
        task = self._fleet.task
        key = (task.kind, task.support, task.query, self._fleet.personal is not None)
        if key not in self._memories:
            size = self._library.ft_fleet_memory_bytes(ctypes.addressof(self._fleet))
            rooms = [aligned(size) for _ in range(self._threads)]
            if not size:  # the call is about to be refused, and says why
                return rooms
            self._memories[key] = rooms
        return self._memories[key]


def _address(array: Array | None) -> int | None:
    return None if array is None else array.ctypes.data


def _fitting(name: str, array: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    """The array, if C can read it where it lies."""
    fits = isinstance(array, np.ndarray) and array.dtype == dtype and array.shape == shape
    if not fits or not array.flags.c_contiguous:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else f"{array!r:.40}"
        raise DataError(f"{name} must be {np.dtype(dtype)} {shape} without gaps; it is {got}")
    return array


def _row_floats(program: Program, tensor: int) -> int:
    return int(np.prod(program.tables.tensors[tensor].shape[1:], dtype=np.int64))


def _sent(program: Program, instruction: Instruction) -> Bools:
    """The coordinates that a visit sends, or of an evaluation would send."""
    sent = np.zeros(program.layout.size, np.bool_)
    for start, stop in program.sent_ranges(replace(instruction, kind=TRAIN)):
        sent[start:stop] = True
    return sent


def _stays(program: Program) -> Array | None:
    """Which coordinates stay on the device; None for none."""
    local = np.zeros(program.layout.size, np.uint8)
    for start, stop in program.local_ranges:
        local[start:stop] = 1
    return local if local.any() else None

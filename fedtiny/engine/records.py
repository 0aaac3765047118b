"""What the passes have decided about a model, and the tables of an image that say so."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fedtiny.engine import image, ir, ops
from fedtiny.engine.image import (
    CORRECTION,
    FEATURES,
    MOMENTUM,
    NONE,
    PROX,
    OpRecord,
    ParamRecord,
    Tables,
    TensorRecord,
)  # fmt: skip
from fedtiny.engine.ir import Graph, Op, Overlay, Tensor
from fedtiny.engine.quantize import FLOAT32
from fedtiny.engine.sparsity import NO_WEIGHTS, Pool
from fedtiny.tensors import FLOAT_BYTES

if TYPE_CHECKING:
    from fedtiny.engine.memory import MemoryPlan
    from fedtiny.layout import Parameter
    from fedtiny.values import Sgd

_REGIONS = {
    ir.ARENA: image.ARENA, ir.PARAMETER: image.PARAMS, ir.INPUT: image.INPUT,
    ir.LABEL: image.LABELS, ir.LIVE: image.LIVE, ir.FROZEN_HOME: image.FROZEN,
    ir.CONST: image.CONST,
}  # fmt: skip
_DTYPES = {ir.F32: image.F32, ir.I32: image.I32, ir.I8: image.I8}
_AXES = {"in": image.IN, "out": image.OUT}


@dataclass(frozen=True)
class Decisions:
    """What the passes have decided."""

    graph: Graph
    memory: MemoryPlan
    lower_bound: int
    trained: Collection[str]
    sgd: Sgd
    loss: str
    rule: str
    axes: tuple[int, ...]
    reserve: int
    density: float = 1.0
    pool: Pool = NO_WEIGHTS
    dense_base: bool = False
    kept_vectors: int = 0
    dtype: str = FLOAT32

    @property
    def features(self) -> int:
        """The feature bits of the image."""
        named = sum(bit for name, bit in FEATURES.items() if getattr(self.sgd, name))
        return named | (MOMENTUM if self.sgd.gradient else 0)

    @property
    def trained_floats(self) -> int:
        """Elements of the trained parameters and overlays, and of the pool."""
        tensors = [self.graph.tensors[name] for name in self.trained]
        return sum(t.size for t in tensors if t.home != ir.LIVE) + self.pool.capacity

    @property
    def state_floats(self) -> int:
        """Floats of the state slots."""
        slots = (self.features & (MOMENTUM | PROX | CORRECTION)).bit_count()
        return slots * self.trained_floats

    def bytes_of(self, home: str) -> int:
        """Of all tensors with that home."""
        return sum(t.nbytes for t in self.graph.tensors.values() if t.home == home)

    @property
    def dense_words(self) -> int:
        """Of the parameters in RAM of which every value is stored."""
        return self.bytes_of(ir.PARAMETER) // FLOAT_BYTES

    @property
    def kept_bytes(self) -> int:
        """Of the vectors beside the parameters."""
        dense = self.graph.layout.size - sum(self.pool.counts)
        return self.kept_vectors * (dense + self.pool.capacity) * FLOAT_BYTES

    @property
    def ranges(self) -> set[str]:
        """The parameters by which activations are held as int8."""
        scales = {t.scale for t in self.graph.tensors.values() if t.dtype == ir.I8}
        return scales.intersection(p.name for p in self.graph.layout.parameters)


# ---- the tables ------------------------------------------------------------------------------


def tables(build: Decisions, report: Mapping[str, int]) -> Tables:
    """Those of a build; its card carries the report."""
    graph = build.graph
    stored = _stored(graph)
    index, places = {name: i for i, name in enumerate(graph.tensors)}, _places(build, stored)
    return Tables(
        arena_bytes=build.memory.arena_bytes,
        param_floats=build.dense_words + build.pool.words,
        state_floats=build.state_floats,
        trained_floats=build.trained_floats,
        vector_floats=graph.layout.size,
        n_forward=graph.n_forward,
        batch=graph.batch,
        features=build.features,
        input=index[graph.input],
        label=index[graph.label],
        output=index[graph.output],
        loss=index[graph.loss],
        live_capacity=build.pool.capacity,
        live_at=build.dense_words if build.pool.counts else 0,
        live_form=build.pool.form,
        n_pruned=len(build.pool.counts),
        bucket=build.pool.bucket,
        frozen_words=build.bytes_of(ir.FROZEN_HOME) // FLOAT_BYTES,
        tensors=tuple(_tensor_record(t, index, places) for t in graph.tensors.values()),
        params=_param_records(build, stored, index, places),
        ops=tuple(_op_record(op, stored, graph, index) for op in graph.ops),
        consts=tuple(word for words in graph.constants.values() for word in words),
        layout_digest=graph.layout.digest,
        card=_card(build, report),
    )


def _card(build: Decisions, report: Mapping[str, int]) -> dict[str, object]:
    graph = build.graph
    return {
        "layout": graph.layout.to_json(),
        "initial": [list(graph.initial[p.name]) for p in graph.layout.parameters],
        "forward": [op.outputs[0] for op in graph.ops[: graph.n_forward]],
        "loss": build.loss,
        "plan": build.rule,
        "sgd": asdict(build.sgd),
        "axes": list(build.axes),
        "dtype": build.dtype,
        "report": dict(report),
        **({"density": build.density} if build.pool.counts else {}),
    }


# ---- what is stored, and where ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stored:
    """A parameter as a device stores it, or the channels of it that an overlay holds."""

    name: str
    parameter: Parameter
    overlay: Overlay | None = None


def _stored(graph: Graph) -> tuple[_Stored, ...]:
    """In the order of the layout; an overlay stands behind its whole parameter."""
    overlays = {overlay.parameter: name for name, overlay in graph.overlays.items()}
    found: list[_Stored] = []
    for p in graph.layout.parameters:
        found.append(_Stored(p.name, p))
        if p.name in overlays:
            name = overlays[p.name]
            found.append(_Stored(name, p, graph.overlays[name]))
    return tuple(found)


def _places(build: Decisions, stored: Iterable[_Stored]) -> dict[str, int]:
    """Byte offsets of all tensors that have one; of the pruned parameters their numbers."""
    tensors = build.graph.tensors
    ordered = (*(item.name for item in stored), *build.graph.constants, *tensors)
    homes: dict[str, list[Tensor]] = {}
    for name in dict.fromkeys(ordered):
        homes.setdefault(tensors[name].home, []).append(tensors[name])
    live = {tensor.name: number for number, tensor in enumerate(homes.get(ir.LIVE, ()))}
    places = {**build.memory.offsets, **live}
    for home in (ir.PARAMETER, ir.FROZEN_HOME, ir.CONST):
        places |= _in_a_row(homes.get(home, ()))
    return places


def _in_a_row(tensors: Iterable[Tensor]) -> dict[str, int]:
    places, at = dict[str, int](), 0
    for tensor in tensors:
        places[tensor.name] = at
        at += tensor.nbytes
    return places


# ---- the rows --------------------------------------------------------------------------------


def _tensor_record(
    tensor: Tensor, index: Mapping[str, int], places: Mapping[str, int]
) -> TensorRecord:
    scale = index[tensor.scale] if tensor.dtype == ir.I8 else NONE
    place = places.get(tensor.name, 0)
    return TensorRecord(_DTYPES[tensor.dtype], _REGIONS[tensor.home], tensor.shape, place, scale)


def _param_records(
    build: Decisions, stored: Iterable[_Stored], index: Mapping[str, int], places: Mapping[str, int]
) -> tuple[ParamRecord, ...]:
    graph, records, state_at = build.graph, list[ParamRecord](), 0
    groups, ranges = graph.layout.groups, build.ranges
    for item in stored:
        tensor, p, overlay = graph.tensors[item.name], item.parameter, item.overlay
        trained, is_live = item.name in build.trained, tensor.home == ir.LIVE
        in_state = trained and not is_live
        records.append(
            ParamRecord(
                index[item.name], groups.index(p.group), trained, p.offset, tensor.size,
                state_at if in_state else 0, places[item.name] + 1 if is_live else 0,
                index[overlay.index] if overlay else NONE,
                _AXES[overlay.axis] if overlay else image.WHOLE,
                image.RANGE if item.name in ranges else image.PLAIN,
            )
        )  # fmt: skip
        state_at += tensor.size * in_state
    return tuple(records)


def _op_record(
    op: Op, stored: tuple[_Stored, ...], graph: Graph, index: Mapping[str, int]
) -> OpRecord:
    row = ops.TABLE[op.kind]
    tensors = tuple(index[n] if n else NONE for n in ops.arranged(op))
    words = op.attributes.words if op.attributes else ()
    if not op.parameter:
        return OpRecord(row.code, tensors, attributes=(0, *words))
    number, item = next((i, s) for i, s in enumerate(stored) if s.name == op.parameter)
    group = graph.layout.groups.index(item.parameter.group)
    return OpRecord(row.code, tensors, group, (number if row.role == ops.UPDATE else 0, *words))

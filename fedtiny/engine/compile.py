"""A model and a byte budget become a Program: the ordered list of passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fedtiny.engine import ir, ops
from fedtiny.engine.autodiff import differentiate, with_loss
from fedtiny.engine.builder import Net
from fedtiny.engine.ir import Graph, Op
from fedtiny.engine.memory import MemoryPlan, check_memory, plan_memory
from fedtiny.engine.plan import trained_parameters
from fedtiny.engine.program import (
    ARENA,
    CORRECTION,
    FEATURES,
    INPUT,
    LABELS,
    MOMENTUM,
    NONE,
    PARAMS,
    PROX,
    OpRecord,
    ParamRecord,
    Program,
    Tables,
    TensorRecord,
    write_image,
)  # fmt: skip
from fedtiny.errors import BudgetError, CompileError
from fedtiny.values import Sgd, UpdatePlan, parse_bytes

if TYPE_CHECKING:
    from typing import Protocol

    class Shaped(Protocol):
        """Anything with a shape: an array or a tensor."""

        @property
        def shape(self) -> tuple[int, ...]:
            """Batch first."""


STACK_BYTES = 512
"""Bound of the small runtime's stack; a test adds up the compiler's own figures."""
RUNTIME_BYTES = 12 * 1024
"""Bound of the small runtime's code and constants; a test measures it."""
_REGIONS = {ir.ARENA: ARENA, ir.PARAMETER: PARAMS, ir.INPUT: INPUT, ir.LABEL: LABELS}


def compile(
    net: Net,
    example_input: Shaped | None = None,
    *,
    loss: str,
    ram: int | str,
    flash: int | str = "1MiB",
    batch: int = 1,
    plan: UpdatePlan | str = "all",
    sgd: Sgd | None = None,
    reserve: int | str = 0,
) -> Program:
    """Compile a net into a Program that trains within its budget.

    Args:
        net: A builder net.
        example_input: Optional; its shape behind the batch axis must be the net's.
        loss: ``mse`` or ``cross_entropy``.
        ram: Bytes of the whole device ("256KiB" or an integer), the reserve included.
        flash: Bytes for the image and the runtime.
        batch: Samples per training step.
        plan: What to train: an UpdatePlan, or its rule as text ("last:1").
        sgd: The update rule; what is non-zero gets its memory, and is a Learner's default.
        reserve: RAM for the rest of the firmware.

    Raises:
        BudgetError: The Program does not fit; carries and says the bytes.
        CompileError: The net, the shapes, the plan or the loss cannot be compiled.
    """
    _check_example(net, example_input)
    if batch < 1 or batch > 0xFFFF:
        raise CompileError(f"the batch must be 1 to 65535; got {batch}")
    sgd = sgd or Sgd()
    plan = UpdatePlan(plan) if isinstance(plan, str) else plan
    forward = with_loss(net.graph(batch), loss)
    trained = trained_parameters(plan, forward.layout)
    graph = differentiate(forward, trained, clip=sgd.clip > 0)
    memory = plan_memory(graph)
    lower_bound = check_memory(graph, memory)
    build = _Build(graph, memory, trained, sgd, loss, plan.rule)
    program = _with_report(build, lower_bound, parse_bytes(reserve))
    _check_budget(build, program, parse_bytes(ram), parse_bytes(flash))
    return program


def _check_example(net: Net, example_input: Shaped | None) -> None:
    if example_input is not None and tuple(example_input.shape[1:]) != net.sample_shape:
        raise CompileError(
            f"the example input has shape {tuple(example_input.shape)}; the net takes "
            f"(batch, {', '.join(map(str, net.sample_shape))})"
        )


@dataclass(frozen=True)
class _Build:
    """What the passes have decided."""

    graph: Graph
    memory: MemoryPlan
    trained: tuple[str, ...]
    sgd: Sgd
    loss: str
    rule: str

    @property
    def features(self) -> int:
        named = sum(bit for name, bit in FEATURES.items() if getattr(self.sgd, name))
        return named | (MOMENTUM if self.sgd.gradient else 0)

    @property
    def trained_floats(self) -> int:
        return sum(self.graph.layout[name].size for name in self.trained)

    @property
    def state_floats(self) -> int:
        slots = (self.features & (MOMENTUM | PROX | CORRECTION)).bit_count()
        return slots * self.trained_floats


def _with_report(build: _Build, lower_bound: int, reserve: int) -> Program:
    """The Program; its card carries the report, whose image size depends on the card itself."""
    report = _report(build, lower_bound, reserve)
    size = 0
    while report["image_bytes"] != size:
        size = report["image_bytes"]
        image = write_image(_tables(build, report))
        report["image_bytes"] = len(image)
        report["flash_bytes"] = len(image) + RUNTIME_BYTES
    return Program(image)


def _report(build: _Build, lower_bound: int, reserve: int) -> dict[str, int]:
    graph = build.graph
    tensors, ops_macs = graph.tensors, [ops.macs(op, graph.tensors) for op in graph.ops]
    figures = {
        "parameters_bytes": graph.layout.size * 4,
        "arena_bytes": build.memory.arena_bytes,
        "state_bytes": build.state_floats * 4,
        "sample_bytes": tensors[graph.input].nbytes + tensors[graph.label].nbytes,
        "stack_bytes": STACK_BYTES,
        "reserve_bytes": reserve,
    }
    return {
        **figures,
        "ram_bytes": sum(figures.values()),
        "image_bytes": -1,
        "runtime_bytes": RUNTIME_BYTES,
        "flash_bytes": 0,
        "lower_bound_bytes": lower_bound,
        "trained_parameters": build.trained_floats,
        "macs_per_forward": sum(ops_macs[: graph.n_forward]),
        "macs_per_step": sum(ops_macs),
    }


# ---- the image's tables ----------------------------------------------------------------------


def _tables(build: _Build, report: Mapping[str, int]) -> Tables:
    graph, layout = build.graph, build.graph.layout
    index = {name: i for i, name in enumerate(graph.tensors)}
    return Tables(
        arena_bytes=build.memory.arena_bytes,
        param_floats=layout.size,
        state_floats=build.state_floats,
        trained_floats=build.trained_floats,
        vector_floats=layout.size,
        n_forward=graph.n_forward,
        batch=graph.batch,
        features=build.features,
        input=index[graph.input],
        label=index[graph.label],
        output=index[graph.output],
        loss=index[graph.loss],
        tensors=tuple(_tensor_record(build, name) for name in graph.tensors),
        params=_param_records(build, index),
        ops=tuple(_op_record(build, op, index) for op in graph.ops),
        layout_digest=layout.digest,
        card=_card(build, report),
    )


def _card(build: _Build, report: Mapping[str, int]) -> dict[str, object]:
    graph = build.graph
    return {
        "layout": graph.layout.to_json(),
        "bounds": [graph.fan_in[p.name] ** -0.5 for p in graph.layout.parameters],
        "forward": [op.outputs[0] for op in graph.ops[: graph.n_forward]],
        "loss": build.loss,
        "plan": build.rule,
        "sgd": asdict(build.sgd),
        "report": dict(report),
    }


def _tensor_record(build: _Build, name: str) -> TensorRecord:
    tensor = build.graph.tensors[name]
    if tensor.home == ir.PARAMETER:
        offset = build.graph.layout[name].offset * 4
    else:
        offset = build.memory.offsets.get(name, 0)
    return TensorRecord(int(tensor.dtype != ir.F32), _REGIONS[tensor.home], tensor.shape, offset)


def _param_records(build: _Build, index: Mapping[str, int]) -> tuple[ParamRecord, ...]:
    records: list[ParamRecord] = []
    state_at = 0
    groups = build.graph.layout.groups
    for p in build.graph.layout.parameters:
        trained = p.name in build.trained
        at = state_at if trained else 0
        records.append(
            ParamRecord(index[p.name], groups.index(p.group), trained, p.offset, p.size, at)
        )
        state_at += p.size * trained
    return tuple(records)


def _op_record(build: _Build, op: Op, index: Mapping[str, int]) -> OpRecord:
    row = ops.TABLE[op.kind]
    tensors = tuple(index[n] if n else NONE for n in op.operands)
    if not op.parameter:
        return OpRecord(row.code, tensors)
    layout = build.graph.layout
    group = layout.groups.index(layout[op.parameter].group)
    position = layout.parameters.index(layout[op.parameter])
    return OpRecord(row.code, tensors, group, (position,) if row.role == ops.UPDATE else ())


# ---- the budget ------------------------------------------------------------------------------


def _check_budget(build: _Build, program: Program, ram: int, flash: int) -> None:
    report = program.report()
    if report["ram_bytes"] > ram:
        stored = [t for t in build.graph.tensors.values() if t.home in (ir.ARENA, ir.PARAMETER)]
        largest = sorted(((t.nbytes, t.name) for t in stored), reverse=True)[:3]
        names = ", ".join(f"{name} {size:,} B" for size, name in largest)
        parts = ", ".join(
            f"{key.removesuffix('_bytes')} {report[key]:,}"
            for key in ("parameters_bytes", "arena_bytes", "state_bytes", "sample_bytes",
                        "stack_bytes", "reserve_bytes")
        )  # fmt: skip
        raise BudgetError(
            f"needs {report['ram_bytes']:,} B of {ram:,} B RAM ({parts}); largest: {names}; "
            "train fewer layers, lower the batch, or take a smaller net",
            report["ram_bytes"],
            ram,
            program,
        )
    if report["flash_bytes"] > flash:
        raise BudgetError(
            f"needs {report['flash_bytes']:,} B of {flash:,} B flash (image "
            f"{report['image_bytes']:,}, runtime {report['runtime_bytes']:,}); take a smaller net",
            report["flash_bytes"],
            flash,
            program,
        )

"""A model and a byte budget become a Program: the ordered list of passes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol, cast

from fedtiny.engine import ir, ops
from fedtiny.engine.autodiff import differentiate, with_loss
from fedtiny.engine.fusion import fuse
from fedtiny.engine.image import (
    ARENA,
    CORRECTION,
    FEATURES,
    INPUT,
    LABELS,
    LIVE,
    MOMENTUM,
    NONE,
    PARAMS,
    PROX,
    OpRecord,
    ParamRecord,
    Tables,
    TensorRecord,
    write_image,
)  # fmt: skip
from fedtiny.engine.ir import Graph, Op
from fedtiny.engine.memory import MemoryPlan, check_memory, plan_memory
from fedtiny.engine.plan import trained_parameters
from fedtiny.engine.program import Program, ram_parts
from fedtiny.engine.saving import spare
from fedtiny.engine.schedule import schedule
from fedtiny.engine.sparsity import NO_WEIGHTS, PLACE_BYTES, Pool, prune
from fedtiny.errors import BudgetError, CompileError
from fedtiny.tensors import FLOAT_BYTES
from fedtiny.update_plan import UpdatePlan
from fedtiny.values import Sgd, parse_bytes

STACK_BYTES = 1024
"""Bound of the small runtime's stack; a test adds up the compiler's own figures."""
RUNTIME_BYTES = 36 * 1024
"""Bound of the small runtime's code and constants; a test measures it."""
_REGIONS = {
    ir.ARENA: ARENA, ir.PARAMETER: PARAMS, ir.INPUT: INPUT, ir.LABEL: LABELS, ir.LIVE: LIVE,
}  # fmt: skip


def compile(
    model: object,
    example_input: object = None,
    *,
    loss: str,
    ram: int | str,
    flash: int | str = "1MiB",
    batch: int = 1,
    plan: UpdatePlan | str = "all",
    sgd: Sgd | None = None,
    reserve: int | str = 0,
    class_weights: Sequence[float] | None = None,
    fold: bool = False,
    minimise: str = "ram",
    max_model: int | str = "64MB",
    density: float = 1.0,
    bucket: int = 0,
    dense_base: bool = False,
    kept_vectors: int = 0,
) -> Program:
    """Compile a model into a Program that trains within its budget.

    Args:
        model: A builder net, or a ``torch.nn.Module`` in the mode (``.train()``, ``.eval()``) in
            which its batch normalisations are meant.
        example_input: What the module takes, with a batch axis. Of a builder net optional.
        loss: ``mse``, ``cross_entropy`` (labels are classes) or ``soft_cross_entropy`` (labels are
            the probabilities of the classes).
        ram: Bytes of the whole device ("256KiB" or an integer), the reserve included.
        flash: Bytes for the image and the runtime.
        batch: Samples per training step.
        plan: What to train: an UpdatePlan, or its rule as text ("last:1").
        sgd: The update rule; what is non-zero gets its memory, and is a Learner's default.
        reserve: RAM for the rest of the firmware.
        class_weights: How much a sample of each class counts in ``cross_entropy``.
        fold: Fold a module's frozen batch normalisations into the layers before them.
        minimise: ``ram``, or ``time``: compute nothing twice to save memory.
        max_model: The most bytes of parameters that are looked at.
        density: The share of the weights of linear layers and of convolutions without groups that
            are live at most; below 1 only these are stored, and a mask says which they are.
        bucket: The most dead weights that one growth may name.
        dense_base: Keep room for a dense model beside the live weights, as choosing among candidate
            masks takes.
        kept_vectors: Keep room for so many vectors as long as the stored parameters: the base that
            a delta is the difference to, what error feedback has left out, a control variate, a
            model of the device's own.

    Raises:
        BudgetError: The Program does not fit; carries and says the bytes.
        CompileError: The model, the shapes, the plan or the loss cannot be compiled.
    """
    net = net_of(model, example_input, fold=fold, max_model=max_model)
    built = build(
        net, loss=loss, batch=batch, plan=plan, sgd=sgd, reserve=reserve,
        class_weights=class_weights, minimise=minimise, density=density, bucket=bucket,
        dense_base=dense_base, kept_vectors=kept_vectors,
    )  # fmt: skip
    built.check(parse_bytes(ram), parse_bytes(flash))
    return built.program


class Compilable(Protocol):
    """A model as the passes take it; ``axes`` is the order in which a device stores a sample's."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    def graph(self, batch: int) -> Graph:
        """The forward graph at a batch size."""


def is_module(model: object) -> bool:
    """Whether it is a torch module. torch itself is only imported for one."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def _check_values(module: Any) -> None:
    """Of a torch module: everything it holds has values."""
    held = (*module.named_parameters(), *module.named_buffers())
    empty = [
        name for name, tensor in held
        if type(tensor).__name__.startswith("Uninitialized") or tensor.is_meta
    ]  # fmt: skip
    if empty:
        raise CompileError(
            f"{empty} have no values yet; run the module once on an example, on the CPU"
        )


def net_of(
    model: object,
    example_input: object = None,
    *,
    fold: bool = False,
    max_model: int | str = "64MB",
) -> Compilable:
    """The model as a net: itself, or what a torch module converts to.

    Raises CompileError for what is neither, or too large, or does not take the example.
    """
    if is_module(model):
        _check_values(cast("Any", model))
        _check_size(sum(p.numel() for p in cast("Any", model).parameters()), max_model)
        from fedtiny.engine import torch_frontend

        return torch_frontend.convert(cast("Any", model), example_input, fold)
    if not callable(getattr(model, "graph", None)):
        raise CompileError(
            f"a {type(model).__name__} is no model; give a fedtiny builder net or a torch module"
        )
    if fold:
        raise CompileError("fold=True is for torch modules; leave the batch_norm of a net out")
    net = cast("Compilable", model)
    _check_size(net.graph(1).layout.size, max_model)
    _check_example(net, example_input)
    return net


def built_net(
    make: Callable[[], object], seed: int, *, fold: bool = False, max_model: int | str = "64MB"
) -> Compilable:
    """The net that ``make`` gives: a net, a torch module with an attribute ``example_input``, or a
    module and its example input.

    A module starts from its own values, so it is made under torch's generator with the seed.
    """
    made = make()
    if is_module(made[0] if isinstance(made, tuple) and made else made):
        from fedtiny.engine import torch_frontend

        made = torch_frontend.seeded(make, seed)
    pair = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    return net_of(*pair, fold=fold, max_model=max_model)


def _check_size(floats: int, max_model: int | str) -> None:
    if floats * FLOAT_BYTES > parse_bytes(max_model):
        raise CompileError(
            f"the model has {floats * FLOAT_BYTES:,} B of parameters and max_model is "
            f"{parse_bytes(max_model):,} B; take a smaller model, or raise max_model"
        )


def _check_example(net: Compilable, example_input: object) -> None:
    shape = tuple(getattr(example_input, "shape", ()))
    if example_input is not None and shape[1:] != net.sample_shape:
        raise CompileError(
            f"the example input has shape {shape}; the net takes "
            f"(batch, {', '.join(map(str, net.sample_shape))})"
        )


# ---- the passes ------------------------------------------------------------------------------


def build(
    net: Compilable,
    *,
    loss: str,
    batch: int = 1,
    plan: UpdatePlan | str = "all",
    sgd: Sgd | None = None,
    reserve: int | str = 0,
    class_weights: Sequence[float] | None = None,
    minimise: str = "ram",
    density: float = 1.0,
    bucket: int = 0,
    dense_base: bool = False,
    kept_vectors: int = 0,
) -> Build:
    """What `compile` makes of a net, fitting or not."""
    if batch < 1 or batch > 0xFFFF:
        raise CompileError(f"the batch must be 1 to 65535; got {batch}")
    sgd = sgd or Sgd()
    plan = UpdatePlan(plan) if isinstance(plan, str) else plan
    pruned = prune(net.graph(batch), density)
    forward = with_loss(fuse(pruned), loss, class_weights)
    tracked = _checked_statistics(forward)
    planned = trained_parameters(plan, forward.layout)
    descending = [name for name in planned if name not in tracked]
    graph = differentiate(forward, descending, clip=sgd.clip > 0)
    graph = schedule(spare(graph, minimise))
    memory = plan_memory(graph)
    lower_bound = check_memory(graph, memory)
    trained = tuple(p.name for p in graph.layout.parameters if p.name in {*planned, *tracked})
    return Build(
        graph, memory, lower_bound, trained, sgd, loss, plan.rule,
        tuple(getattr(net, "axes", ())), parse_bytes(reserve), density,
        Pool.of(graph, density, bucket), dense_base and density < 1,
        kept_vectors,
    )  # fmt: skip


def _checked_statistics(graph: Graph) -> set[str]:
    """The running statistics, which every step moves and no gradient."""
    tracked: set[str] = set()
    for op in graph.ops:
        shape = graph.tensors[op.outputs[0]].shape
        by_batch = op.kind in ("batch_normalize", "tracked_normalize")
        if by_batch and math.prod(shape[:-1]) == 1:
            raise CompileError(
                f"{op.outputs[0]} normalises over a single value a channel, which leaves nothing; "
                "raise the batch, use GroupNorm, or freeze it by .eval()"
            )
        if op.kind == "tracked_normalize":
            if twice := tracked.intersection(op.inputs):
                raise CompileError(
                    f"two normalisations move {min(twice)}; give each statistics of its own"
                )
            tracked.update(op.inputs[1:])
    return tracked


@dataclass(frozen=True)
class Build:
    """What the passes have decided."""

    graph: Graph
    memory: MemoryPlan
    lower_bound: int
    trained: tuple[str, ...]
    sgd: Sgd
    loss: str
    rule: str
    axes: tuple[int, ...]
    reserve: int
    density: float = 1.0
    pool: Pool = NO_WEIGHTS
    dense_base: bool = False
    kept_vectors: int = 0

    @property
    def features(self) -> int:
        """The feature bits of the image."""
        named = sum(bit for name, bit in FEATURES.items() if getattr(self.sgd, name))
        return named | (MOMENTUM if self.sgd.gradient else 0)

    @property
    def trained_floats(self) -> int:
        """Floats of the trained parameters, and of the pool."""
        dense = [name for name in self.trained if self.graph.tensors[name].home != ir.LIVE]
        return sum(self.graph.layout[name].size for name in dense) + self.pool.capacity

    @property
    def state_floats(self) -> int:
        """Floats of the state slots."""
        slots = (self.features & (MOMENTUM | PROX | CORRECTION)).bit_count()
        return slots * self.trained_floats

    @property
    def dense_floats(self) -> int:
        """Floats of the parameters of which every value is stored."""
        return self.graph.layout.size - sum(self.pool.counts)

    @property
    def kept_bytes(self) -> int:
        """Of the vectors beside the parameters."""
        return self.kept_vectors * (self.dense_floats + self.pool.capacity) * FLOAT_BYTES

    @cached_property
    def program(self) -> Program:
        """The Program; its card carries the report, whose image size depends on the card itself."""
        report = _report(self)
        size = 0
        while report["image_bytes"] != size:
            size = report["image_bytes"]
            image = write_image(_tables(self, report))
            report["image_bytes"] = len(image)
            report["flash_bytes"] = len(image) + RUNTIME_BYTES
        return Program(image, self.graph.start)

    def check(self, ram: int, flash: int) -> None:
        """BudgetError with the figures if it needs more bytes."""
        _check_budget(self, self.program, ram, flash)


def _report(build: Build) -> dict[str, int]:
    graph, pool = build.graph, build.pool
    tensors, ops_macs = graph.tensors, [_macs(build, op) for op in graph.ops]
    bucket_bytes = pool.bucket * PLACE_BYTES
    figures = {
        "parameters_bytes": (build.dense_floats + pool.words) * 4,
        "arena_bytes": build.memory.arena_bytes,
        "state_bytes": build.state_floats * 4 + bucket_bytes,
        "sample_bytes": tensors[graph.input].nbytes + tensors[graph.label].nbytes,
        "stack_bytes": STACK_BYTES,
        "reserve_bytes": build.reserve,
        **({"base_bytes": graph.layout.nbytes} if build.dense_base else {}),
        **({"kept_bytes": build.kept_bytes} if build.kept_vectors else {}),
    }
    pruned = {
        "live_values": pool.capacity,
        "index_bytes": pool.index_words * 4,
        "bucket_bytes": bucket_bytes,
    }
    return {
        **figures,
        "ram_bytes": sum(figures.values()),
        "image_bytes": -1,
        "runtime_bytes": RUNTIME_BYTES,
        "flash_bytes": 0,
        "lower_bound_bytes": build.lower_bound,
        "trained_parameters": build.trained_floats,
        "macs_per_forward": sum(ops_macs[: graph.n_forward]),
        "macs_per_step": sum(ops_macs),
        **(pruned if pool.counts else {}),
    }


def _macs(build: Build, op: Op) -> int:
    dense = ops.macs(op, build.graph.tensors)
    return build.pool.macs(op, dense)


# ---- the image's tables ----------------------------------------------------------------------


def _tables(build: Build, report: Mapping[str, int]) -> Tables:
    graph, layout = build.graph, build.graph.layout
    index, places = {name: i for i, name in enumerate(graph.tensors)}, _places(build)
    return Tables(
        arena_bytes=build.memory.arena_bytes,
        param_floats=build.dense_floats + build.pool.words,
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
        live_capacity=build.pool.capacity,
        live_at=build.dense_floats if build.pool.counts else 0,
        live_form=build.pool.form,
        n_pruned=len(build.pool.counts),
        bucket=build.pool.bucket,
        tensors=tuple(_tensor_record(build, name, places) for name in graph.tensors),
        params=_param_records(build, index, places),
        ops=tuple(_op_record(build, op, index) for op in graph.ops),
        layout_digest=layout.digest,
        card=_card(build, report),
    )


def _card(build: Build, report: Mapping[str, int]) -> dict[str, object]:
    graph = build.graph
    return {
        "layout": graph.layout.to_json(),
        "initial": [list(graph.initial[p.name]) for p in graph.layout.parameters],
        "forward": [op.outputs[0] for op in graph.ops[: graph.n_forward]],
        "loss": build.loss,
        "plan": build.rule,
        "sgd": asdict(build.sgd),
        "axes": list(build.axes),
        "report": dict(report),
        **({"density": build.density} if build.pool.counts else {}),
    }


def _places(build: Build) -> dict[str, int]:
    """Byte offsets of all tensors that have one; of the pruned parameters their numbers."""
    places, at, pruned = dict(build.memory.offsets), 0, 0
    for p in build.graph.layout.parameters:
        is_live = build.graph.tensors[p.name].home == ir.LIVE
        places[p.name] = pruned if is_live else at
        at, pruned = at + (0 if is_live else p.size * 4), pruned + is_live
    return places


def _tensor_record(build: Build, name: str, places: Mapping[str, int]) -> TensorRecord:
    tensor = build.graph.tensors[name]
    is_integer, region = int(tensor.dtype != ir.F32), _REGIONS[tensor.home]
    return TensorRecord(is_integer, region, tensor.shape, places.get(name, 0))


def _param_records(
    build: Build, index: Mapping[str, int], places: Mapping[str, int]
) -> tuple[ParamRecord, ...]:
    records: list[ParamRecord] = []
    state_at = 0
    groups = build.graph.layout.groups
    for p in build.graph.layout.parameters:
        trained, is_live = p.name in build.trained, build.graph.tensors[p.name].home == ir.LIVE
        in_state = trained and not is_live
        records.append(
            ParamRecord(
                index[p.name], groups.index(p.group), trained, p.offset, p.size,
                state_at if in_state else 0, places[p.name] + 1 if is_live else 0,
            )
        )  # fmt: skip
        state_at += p.size * in_state
    return tuple(records)


def _op_record(build: Build, op: Op, index: Mapping[str, int]) -> OpRecord:
    row = ops.TABLE[op.kind]
    tensors = tuple(index[n] if n else NONE for n in ops.arranged(op))
    words = op.attributes.words if op.attributes else ()
    if not op.parameter:
        return OpRecord(row.code, tensors, attributes=(0, *words))
    layout = build.graph.layout
    group = layout.groups.index(layout[op.parameter].group)
    updated = layout.parameters.index(layout[op.parameter]) if row.role == ops.UPDATE else 0
    return OpRecord(row.code, tensors, group, (updated, *words))


# ---- the budget ------------------------------------------------------------------------------


def _check_budget(build: Build, program: Program, ram: int, flash: int) -> None:
    report = program.report()
    if report["ram_bytes"] > ram:
        stored = [t for t in build.graph.tensors.values() if t.home in (ir.ARENA, ir.PARAMETER)]
        sizes = [(t.nbytes, t.name) for t in stored] + [(build.pool.words * 4, "the live weights")]
        largest = sorted(sizes, reverse=True)[:3]
        names = ", ".join(f"{name} {size:,} B" for size, name in largest)
        parts = ", ".join(f"{name} {nbytes:,}" for name, nbytes in ram_parts(report).items())
        fewer = "select fewer candidates: candidates = 1 needs no dense model; "
        keep = f"keep fewer vectors than {build.kept_vectors}: leave transforms out; "
        raise BudgetError(
            f"needs {report['ram_bytes']:,} B of {ram:,} B RAM ({parts}); largest: {names}; "
            f"{fewer if build.dense_base else ''}{keep if build.kept_vectors else ''}"
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

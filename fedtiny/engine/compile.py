"""A model and a byte budget become a Program: the ordered list of passes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

from fedtiny.engine import ir
from fedtiny.engine.autodiff import differentiate, with_loss
from fedtiny.engine.built import Build
from fedtiny.engine.fusion import fuse
from fedtiny.engine.ir import Graph
from fedtiny.engine.liveness import live_bytes
from fedtiny.engine.memory import check_memory, plan_memory
from fedtiny.engine.patching import AUTO, Stage, choose, remade
from fedtiny.engine.program import Program
from fedtiny.engine.quantize import DTYPES, FLOAT32, INT8, quantise, with_ranges
from fedtiny.engine.rewriting import pooled_slopes
from fedtiny.engine.saving import spare
from fedtiny.engine.schedule import schedule
from fedtiny.engine.slicing import trained_tensors, with_overlays
from fedtiny.engine.sparsity import Pool, prune
from fedtiny.errors import CompileError
from fedtiny.tensors import FLOAT_BYTES
from fedtiny.update_plan import UpdatePlan
from fedtiny.values import Sgd, parse_bytes


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
    dtype: str = "float32",
    head: str = "float32",
    quantisable: bool = False,
    patches: int | str = 1,
) -> Program:
    """Compile a model into a Program that trains within its budget.

    Args:
        model: A builder net, or a ``torch.nn.Module`` in the mode (``.train()``, ``.eval()``) in
            which its batch normalisations are meant.
        example_input: What the module takes, with a batch axis. Of a builder net optional.
        loss: ``mse``, ``cross_entropy`` (labels are classes) or ``soft_cross_entropy`` (labels are
            the probabilities of the classes).
        ram: Bytes of the whole device ("256KiB" or an integer), the reserve included.
        flash: Bytes for the image, the runtime, and the parameters that do not train.
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
        dtype: ``float32``, or ``int8``: of activations, and of the weights in layers.
        head: The same of the weights of the last layer of an ``int8`` Program.
        quantisable: Give a ``float32`` Program the Layout of an ``int8`` one, which holds the
            ranges of the activations too.
        patches: Run the first layers of an image net for so many patches along each side, one after
            the other, so that their large tensors are never whole; ``auto``: as many as lower the
            peak.

    Raises:
        BudgetError: The Program does not fit; carries and says the bytes.
        CompileError: The model, the shapes, the plan or the loss cannot be compiled.
    """
    net = net_of(model, example_input, fold=fold, max_model=max_model)
    built = build(
        net, loss=loss, batch=batch, plan=plan, sgd=sgd, reserve=reserve,
        class_weights=class_weights, minimise=minimise, density=density, bucket=bucket,
        dense_base=dense_base, kept_vectors=kept_vectors, dtype=dtype, head=head,
        quantisable=quantisable, patches=patches,
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
    dtype: str = FLOAT32,
    head: str = FLOAT32,
    quantisable: bool = False,
    patches: int | str | Stage = 1,
    settle: bool = True,
) -> Build:
    """What `compile` makes of a net, fitting or not; without ``settle`` in less time and a few
    percent more bytes."""
    _check_arguments(batch, dtype, head, density)
    sgd = sgd or Sgd()
    plan = UpdatePlan.parse(plan) if isinstance(plan, str) else plan
    forward = _forward(net.graph(batch), density, ranged=quantisable or dtype == INT8)
    parts, tracked = plan.resolve(forward.layout), _checked_statistics(forward)

    def training(forward: Graph) -> Graph:
        graph = with_loss(with_overlays(forward, parts), loss, class_weights)
        planned = trained_tensors(graph, parts)
        descending = [name for name in planned if name not in tracked]
        graph = differentiate(_settled(graph, {*planned, *tracked}), descending, sgd.clip > 0)
        graph = pooled_slopes(quantise(graph, head)) if dtype == INT8 else graph
        return graph if patches == 1 else remade(graph)

    chosen = choose(forward, patches, training)
    graph = spare(training(chosen), minimise)
    if patches == AUTO and chosen is not forward:
        graph = _lower(graph, spare(training(forward), minimise))
    graph = schedule(graph)
    memory, trained = plan_memory(graph, settle), {*trained_tensors(graph, parts), *tracked}
    return Build(
        graph, memory, check_memory(graph, memory), trained, sgd, loss, str(plan),
        tuple(getattr(net, "axes", ())), parse_bytes(reserve), density,
        Pool.of(graph, density, bucket), dense_base and density < 1,
        kept_vectors, dtype,
    )  # fmt: skip


def _lower(patched: Graph, whole: Graph) -> Graph:
    """The graph of patches, if they lower the peak."""
    return min(patched, whole, key=lambda graph: max(live_bytes(graph)))


def _check_arguments(batch: int, dtype: str, head: str, density: float) -> None:
    if batch < 1 or batch > 0xFFFF:
        raise CompileError(f"the batch must be 1 to 65535; got {batch}")
    for name, value in (("dtype", dtype), ("head", head)):
        if value not in DTYPES:
            raise CompileError(f"{name} must be one of {list(DTYPES)}; got {value!r}")
    if head == INT8 and dtype != INT8:
        raise CompileError("head='int8' is for dtype='int8'; leave it out, or give both")
    if dtype == INT8 and density != 1:
        raise CompileError(
            f"int8 stores every weight; got a density of {density}: compile with density=1, or "
            "with dtype='float32'"
        )


def _forward(graph: Graph, density: float, ranged: bool) -> Graph:
    """The net's graph as the passes train it. What has ranges keeps every layer apart."""
    graph = prune(with_ranges(graph) if ranged else graph, density)
    return graph if graph.tensors[graph.input].scale else fuse(graph)


def _settled(graph: Graph, trained: Collection[str]) -> Graph:
    """The graph whose untrained parameters stand in flash."""
    frozen = {
        name: replace(tensor, home=ir.FROZEN_HOME) for name, tensor in graph.tensors.items()
        if tensor.home == ir.PARAMETER and name not in trained
    }  # fmt: skip
    return replace(graph, tensors={**graph.tensors, **frozen})


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

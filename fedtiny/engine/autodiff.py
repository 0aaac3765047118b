"""Reverse mode at compile time: a forward graph becomes a training graph.

The updates are fused into the backward walk: an op's data gradient is computed first (it reads the
old weights), then its parameters are updated in place, so that no gradient is ever stored. Clipping
by the global norm needs every gradient before the first update; instead of storing them, the walk
then keeps the data gradients and computes each weight gradient twice: once for its norm, once for
its update. Only the gradients of a parameter that several ops use are summed in a buffer, which the
last of them in the walk hands to the update. Ops whose gradient nobody needs are never made.

Where channels of a parameter train, the gradient is that of their overlay. The merged weight is
not kept: for the data gradient it is made again, before the update, which need not wait then. Or it
is not made at all: of a large weight with an overlay of inputs, the data gradients of the overlay
and of the whole parameter are made apart, and their channels merged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedtiny.engine.ir import (
    ARENA,
    AXES,
    F32,
    I32,
    LABEL,
    PARAMETER,
    Attributes,
    Graph,
    Op,
    Scalars,
    Tensor,
    Window,
    fresh,
    verify,
)  # fmt: skip
from fedtiny.engine.ops import BUFFERED, MERGE, TABLE, GradientRule, Operand, Way, produce
from fedtiny.engine.shapes import Shape, pooling_of
from fedtiny.engine.slicing import Chosen, reads
from fedtiny.errors import CompileError, GraphError
from fedtiny.layout import FROZEN, Layout, Parameter
from fedtiny.tensors import FLOAT_BYTES
from fedtiny.update_plan import IN, OUT, Part

LOSSES = ("mse", "cross_entropy", "soft_cross_entropy")
CLASS_WEIGHTS = "loss.weight"
"""The parameter that holds the weights of the classes."""


# ---- the loss --------------------------------------------------------------------------------


def with_loss(graph: Graph, loss: str, class_weights: Sequence[float] | None = None) -> Graph:
    """The forward graph with a loss over its output, and the gradient of the output."""
    if loss not in LOSSES:
        raise GraphError(f"there is no loss {loss!r}; there are {list(LOSSES)}")
    by_class = loss == "cross_entropy"
    output = graph.tensors[graph.output]
    shape, dtype = (output.shape[:1], I32) if by_class else (output.shape, F32)
    label = Tensor("label", shape, dtype, LABEL)
    operands: tuple[str, ...] = (graph.output, label.name)
    if class_weights is not None:
        graph = _with_class_weights(graph, loss, class_weights)
        loss, operands = f"weighted_{loss}", (*operands, CLASS_WEIGHTS)
    tensors = {**graph.tensors, label.name: label}
    made = (fresh(f"d.{graph.output}", tensors), "loss")
    op, outputs = produce(loss, operands, made, tensors)
    extended = graph.extended([label, *outputs], [op])
    return verify(replace(extended, label=label.name, loss=made[1]))


def _with_class_weights(graph: Graph, loss: str, weights: Sequence[float]) -> Graph:
    """The graph with the weights as a parameter that never trains."""
    values = np.asarray(weights, np.float32)
    classes = graph.tensors[graph.output].shape[1:]
    if loss != "cross_entropy" or values.shape != classes:
        raise CompileError(
            f"class_weights are for cross_entropy, one for each of {classes} classes; got "
            f"{values.shape} of them for {loss}"
        )
    if not (np.isfinite(values).all() and (values >= 0).all() and values.any()):
        raise CompileError(f"class_weights must be finite, none below 0, one above; got {weights}")
    layout = Layout.of((*graph.layout.parameters, Parameter(CLASS_WEIGHTS, classes, FROZEN)))
    extended = graph.extended([Tensor(CLASS_WEIGHTS, classes, home=PARAMETER)], [])
    initial = {**graph.initial, CLASS_WEIGHTS: ("constant", 1.0)}
    start = {**graph.start, CLASS_WEIGHTS: values}
    return replace(extended, layout=layout, initial=initial, start=start)


# ---- the walk --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Share:
    """What one op adds to the gradient of one parameter, by a family of ops of the table."""

    family: str
    parameter: str
    x: str
    dy: str
    codes: tuple[str, ...] = ()
    attributes: Attributes = None

    def update(self, scale: str = "") -> Op:
        """Move the parameter by it."""
        return self._op("update", self.parameter, scale)

    def norm(self, total: str) -> Op:
        """Add its squares to the total. A window's extents follow from the weight alone."""
        return self._op("norm", total, self.parameter if self.attributes else "")

    def summed(self, buffer: str) -> Op:
        """Add it to a buffer."""
        return self._op("gradient", buffer, "")

    def _op(self, what: str, target: str, other: str) -> Op:
        inputs = (self.x, self.dy, target, other, *self.codes)
        used = max(i + 1 for i, name in enumerate(inputs) if name)
        return Op(f"{self.family}_{what}", inputs[:used], (), self.parameter, self.attributes)


@dataclass
class _Walk:
    """What the backward walk has written so far. ``shares_left`` counts, of each parameter that
    several ops use, those that the walk has still to meet. ``merges`` are the ops behind merged
    weights; ``taken`` are the tensors that hold some channels of another."""

    graph: Graph
    tensors: dict[str, Tensor]
    needed: set[str]
    shares_left: Counter[str]
    ops: list[Op] = field(default_factory=list)
    gradients: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, str] = field(default_factory=dict)
    merges: dict[str, Op] = field(default_factory=dict)
    taken: dict[tuple[str, ...], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        forward = self.graph.ops[: self.graph.n_forward]
        self.merges |= {op.outputs[0]: op for op in forward if op.kind == MERGE}
        self.taken |= {op.inputs: op.outputs[0] for op in forward if op.kind == "take"}

    def emit(
        self, kind: str, inputs: tuple[str, ...], name: str, attributes: Attributes = None,
        like: Shape = (),
    ) -> str:  # fmt: skip
        name = fresh(name, self.tensors)
        attributes = attributes if TABLE[kind].attributes else None
        op, made = produce(kind, inputs, (name,), self.tensors, attributes, like)
        self.ops.append(op)
        self.tensors[name] = made[0]
        return name

    def send(self, target: str, gradient: str) -> None:
        """Add one contribution to the gradient of a tensor."""
        if target in self.gradients:
            gradient = self.emit("add", (self.gradients[target], gradient), f"d.{target}")
        self.gradients[target] = gradient

    def take(self, name: str, channels: Chosen) -> str:
        """The tensor, or some channels of it."""
        if channels is None:
            return name
        lists = {values: index for index, values in self.graph.constants.items()}
        pair = (name, lists[channels])
        if pair not in self.taken:
            self.taken[pair] = self.emit("take", pair, f"{name}.taken")
        return self.taken[pair]

    def merge_again(self, name: str) -> str:
        """The same merged weight, made anew."""
        op = self.merges[name]
        again = self.emit(MERGE, op.inputs, f"{name}~", op.attributes)
        self.merges[again] = op
        return again

    def sum_up(self, share: _Share) -> _Share | None:
        """Add a share to its parameter's buffer; the whole gradient if it was the last."""
        name = share.parameter
        if name not in self.buffers:
            shape = self.tensors[name].shape
            self.buffers[name] = self.emit("zero", (), f"g.{name}", like=shape)
        buffer = self.buffers[name]
        self.ops.append(share.summed(buffer))
        self.shares_left[name] -= 1
        return None if self.shares_left[name] else _Share(BUFFERED, name, "", buffer)


def differentiate(graph: Graph, trained: Collection[str], clip: bool) -> Graph:
    """The training graph of one step.

    Args:
        graph: A forward graph with a loss.
        trained: The names of the parameters to update.
        clip: Whether to scale all gradients by the global norm first.
    """
    forward, loss = graph.ops[: graph.n_forward], graph.ops[graph.n_forward]
    needed = _depending(forward, trained)
    reached = _contributing(forward, graph.output)
    reaching = [op for op in reversed(forward) if op.outputs[0] in needed & reached]
    uses = Counter(name for op in reaching for name in op.inputs if name in trained)
    walked = [op for op in reaching if op.kind != MERGE]
    shared = Counter({name: count for name, count in uses.items() if count > 1})
    walk = _Walk(graph, dict(graph.tensors), needed, shared)
    walk.gradients[graph.output] = loss.outputs[0]
    shares: list[_Share] = []
    for op in walked:
        shares += _step_back(walk, op, trained, moving=not clip)
    if clip:
        _append_clipped(walk, shares)
    made = [t for name, t in walk.tensors.items() if name not in graph.tensors]
    return verify(graph.extended(made, walk.ops))


def _depending(forward: Sequence[Op], trained: Collection[str]) -> set[str]:
    """The tensors whose value depends on a trained parameter."""
    needed = set(trained)
    for op in forward:
        if needed.intersection(op.inputs):
            needed.update(op.outputs)
    return needed


def _contributing(forward: Sequence[Op], output: str) -> set[str]:
    """The tensors that the output depends on, and itself."""
    reached = {output}
    for op in reversed(forward):
        if reached.intersection(op.outputs):
            reached.update(op.inputs)
    return reached


# ---- one op ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Back:
    """A forward op on its way back: its rule, and the gradient of its output."""

    op: Op
    dy: str

    @property
    def rule(self) -> GradientRule:
        """What the table says."""
        rule = TABLE[self.op.kind].gradient
        if rule is None:
            raise GraphError(
                f"{self.op.kind} has no gradient, but a trained parameter lies before it"
            )
        return rule

    def operand(self, what: Operand) -> str:
        """The tensor that an operand of the rule stands for."""
        if what is None:
            return ""
        if isinstance(what, int):
            return self.op.inputs[what]
        return self.dy if what == "dy" else self.op.outputs[("y", "aux").index(what)]


def _step_back(walk: _Walk, op: Op, trained: Collection[str], moving: bool) -> list[_Share]:
    """Emit the data gradients of one forward op, and if ``moving`` the updates of its parameters:
    of what the data gradients read behind them, of other overlays before. Returns the gradients of
    parameters that are due."""
    back = _Back(op, walk.gradients[op.outputs[0]])
    if op.kind == "conv_pool" and (_has_gradient(walk, op.inputs[0]) or _is_narrow(walk, op)):
        back = _unpooled(walk, back)
    ways = {i: way for i, way in back.rule.data.items() if _has_gradient(walk, op.inputs[i])}
    apart = _read_apart(walk, back, ways)
    back = _merged_again(walk, back, ways.values(), apart)
    shares, unread = list(_shares(walk, back, trained)), walk.graph.overlays.keys() - apart
    early = list(_due(walk, [share for share in shares if share.parameter in unread], moving))
    for position, way in ways.items():
        target = op.inputs[position]
        walk.send(target, _data_gradient(walk, back, way, target, apart))
    late = _due(walk, [share for share in shares if share.parameter not in unread], moving)
    return [*early, *late]


def _due(walk: _Walk, shares: Iterable[_Share], moving: bool) -> Iterator[_Share]:
    """Those gradients of parameters that are complete, or become so."""
    for share in shares:
        due = walk.sum_up(share) if share.parameter in walk.shares_left else share
        if due:
            walk.ops += [due.update()] if moving else []
            yield due


def _read_apart(walk: _Walk, back: _Back, ways: Mapping[int, Way]) -> set[str]:
    """The overlays with which a data gradient is made apart from that with the whole parameter,
    where both take less memory than the merged weight, even if its elements have a byte each."""
    found, overlays = set[str](), walk.graph.overlays
    for position, way in ways.items():
        dx = walk.tensors[back.op.inputs[position]]
        for merge in filter(None, (walk.merges.get(back.operand(what)) for what in way.operands)):
            whole, overlay = walk.tensors[merge.inputs[0]], merge.inputs[1]
            parts = dx.size + dx.size * walk.tensors[overlay].size // whole.size
            if overlays[overlay].axis == IN and parts * FLOAT_BYTES < whole.size:
                found.add(overlay)
    return found


def _merged_again(walk: _Walk, back: _Back, ways: Iterable[Way], apart: Collection[str]) -> _Back:
    """The op with the merged weights that its data gradients read made again."""
    read = {back.op.inputs[what] for way in ways for what in way.operands if isinstance(what, int)}
    merged = [n for n in sorted(read & walk.merges.keys()) if walk.merges[n].inputs[1] not in apart]
    again = {name: walk.merge_again(name) for name in merged}
    inputs = tuple(again.get(name, name) for name in back.op.inputs)
    return replace(back, op=replace(back.op, inputs=inputs))


def _is_narrow(walk: _Walk, op: Op) -> bool:
    """Whether some outputs of its weight train."""
    merge = walk.merges.get(op.inputs[1])
    return merge is not None and walk.graph.overlays[merge.inputs[1]].axis == OUT


def _data_gradient(walk: _Walk, back: _Back, way: Way, target: str, apart: Collection[str]) -> str:
    if not way.kind:
        return back.dy
    attributes, like = way.attributes(back.op, walk.tensors), walk.tensors[target].shape
    inputs = tuple(map(back.operand, way.operands))
    merge = walk.merges.get(inputs[-1])
    if not merge or merge.inputs[1] not in apart:
        return walk.emit(way.kind, inputs, f"d.{target}", attributes, like)
    whole, overlay, index, *_ = merge.inputs
    narrow = (*like[:-1], walk.tensors[index].size)
    dx = walk.emit(way.kind, (inputs[0], whole), f"d.{target}", attributes, like)
    part = walk.emit(way.kind, (inputs[0], overlay), f"d.{target}.part", attributes, narrow)
    return walk.emit(MERGE, (dx, part, index), f"d.{target}", Scalars(number=AXES[OUT]))


def _shares(walk: _Walk, back: _Back, trained: Collection[str]) -> Iterator[_Share]:
    for position, (family, operands) in back.rule.parameters.items():
        name, merge = back.op.inputs[position], walk.merges.get(back.op.inputs[position])
        x, dy, *codes = map(back.operand, operands)
        windowed = TABLE[f"{family}_update"].attributes
        attributes = back.op.attributes if windowed else None
        share = _Share(family, name, x, dy, tuple(codes), attributes)
        if merge and merge.inputs[1] in trained:
            yield _narrowed(walk, share, merge)
        elif name in trained:
            yield share


def _narrowed(walk: _Walk, share: _Share, merge: Op) -> _Share:
    """The share of the overlay in that of a merged weight."""
    whole, overlay, index, *_ = merge.inputs
    part = Part(walk.graph.overlays[overlay].axis, walk.graph.constants[index])
    needs = reads(share.family, share.attributes, walk.tensors[whole], part)
    x, dy = walk.take(share.x, needs.x), walk.take(share.dy, needs.dy)
    return replace(share, parameter=overlay, x=x, dy=dy, attributes=needs.attributes)


def _has_gradient(walk: _Walk, name: str) -> bool:
    return name in walk.needed and walk.tensors[name].home == ARENA


def _unpooled(walk: _Walk, back: _Back) -> _Back:
    """A pooled convolution as the convolution alone, and the gradient of that one's output."""
    window = back.op.attributes
    assert isinstance(window, Window)
    conv = replace(back.op, kind="conv", attributes=replace(window, kernel=(0, 0)))
    operands = [walk.tensors[name].shape if name else () for name in conv.inputs]
    ((inner, _),) = TABLE["conv"].shape(operands, conv.attributes, ())
    y, codes = back.op.outputs
    unpooled = walk.emit("max_pool_dx", (back.dy, codes), f"d.{y}", pooling_of(window), inner)
    return _Back(conv, unpooled)


# ---- clipping --------------------------------------------------------------------------------


def _append_clipped(walk: _Walk, shares: Sequence[_Share]) -> None:
    total = walk.emit("zero", (), "norm")
    walk.ops += [share.norm(total) for share in shares]
    scale = walk.emit("norm_scale", (total,), "clip")
    walk.ops += [share.update(scale) for share in shares]

"""Reverse mode at compile time: a forward graph becomes a training graph.

The updates are fused into the backward walk: an op's data gradient is computed first (it reads the
old weights), then its parameters are updated in place, so that no gradient is ever stored. Clipping
by the global norm needs every gradient before the first update; instead of storing them, the walk
then keeps the data gradients and computes each weight gradient twice: once for its norm, once for
its update. Ops whose gradient nobody needs are never made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from fedtiny.engine.ir import F32, I32, LABEL, PARAMETER, Graph, Op, Tensor, verify
from fedtiny.engine.ops import LOSS, TABLE, produce
from fedtiny.errors import GraphError

LOSSES = tuple(kind for kind, row in TABLE.items() if row.role == LOSS)


@dataclass
class _Walk:
    """What the backward walk has written so far."""

    graph: Graph
    tensors: dict[str, Tensor]
    needed: set[str]
    ops: list[Op] = field(default_factory=list)
    gradients: dict[str, str] = field(default_factory=dict)

    def emit(self, kind: str, inputs: tuple[str, ...], name: str) -> str:
        while name in self.tensors:
            name += "'"
        op, made = produce(kind, inputs, (name,), self.tensors)
        self.ops.append(op)
        self.tensors[name] = made[0]
        return name

    def send(self, target: str, gradient: str) -> None:
        """Add one contribution to the gradient of a tensor."""
        if target in self.gradients:
            gradient = self.emit("add", (self.gradients[target], gradient), f"d.{target}")
        self.gradients[target] = gradient


def with_loss(graph: Graph, loss: str) -> Graph:
    """The forward graph with a loss over its output, and the gradient of the output."""
    if loss not in LOSSES:
        raise GraphError(f"there is no loss {loss!r}; there are {list(LOSSES)}")
    output = graph.tensors[graph.output]
    label = (
        Tensor("label", output.shape, F32, LABEL)
        if loss == "mse"
        else Tensor("label", output.shape[:1], I32, LABEL)
    )
    tensors = {**graph.tensors, "label": label}
    op, made = produce(loss, (graph.output, "label"), (f"d.{graph.output}", "loss"), tensors)
    extended = graph.extended([label, *made], [op])
    return verify(replace(extended, label="label", loss="loss"))


def differentiate(graph: Graph, trained: Collection[str], clip: bool) -> Graph:
    """The training graph of one step.

    Args:
        graph: A forward graph with a loss.
        trained: The names of the parameters to update.
        clip: Whether to scale all gradients by the global norm first.

    Raises:
        GraphError: If a trained parameter is used by more than one op.
    """
    forward = graph.ops[: graph.n_forward]
    _verify_single_use(forward, trained)
    walk = _Walk(graph, dict(graph.tensors), _depending(forward, trained))
    walk.gradients[graph.output] = f"d.{graph.output}"
    updates: list[tuple[Op, Op]] = []
    for op in reversed(forward):
        if op.outputs[0] not in walk.needed:
            continue
        found = list(_step_back(walk, op, trained))
        updates += found
        if not clip:
            walk.ops += [update for update, _ in found]
    if clip:
        _append_clipped(walk, updates)
    made = [t for name, t in walk.tensors.items() if name not in graph.tensors]
    return verify(graph.extended(made, walk.ops))


def _depending(forward: tuple[Op, ...], trained: Collection[str]) -> set[str]:
    """The tensors whose value depends on a trained parameter."""
    needed = set(trained)
    for op in forward:
        if needed.intersection(op.inputs):
            needed.update(op.outputs)
    return needed


def _verify_single_use(forward: tuple[Op, ...], trained: Collection[str]) -> None:
    for name in trained:
        uses = [i for i, op in enumerate(forward) if name in op.inputs]
        if len(uses) != 1:
            raise GraphError(
                f"parameter {name!r} is used by {len(uses)} ops; a trained parameter must be used "
                "by exactly one (freeze it, or give each layer its own)"
            )


def _step_back(walk: _Walk, op: Op, trained: Collection[str]) -> Iterator[tuple[Op, Op]]:
    """Emit the data gradients of one forward op; yield its (update, norm) ops."""
    rule = TABLE[op.kind].gradient
    if rule is None:
        raise GraphError(f"{op.kind} has no gradient, but a trained parameter lies before it")
    dy = walk.gradients[op.outputs[0]]

    def operand(what: int | str | None) -> str:
        if what is None:
            return ""
        return {"dy": dy, "y": op.outputs[0]}[what] if isinstance(what, str) else op.inputs[what]

    for position, (kind, operands) in rule.data.items():
        target = op.inputs[position]
        if target not in walk.needed or walk.graph.tensors[target].home == PARAMETER:
            continue
        inputs = tuple(operand(o) for o in operands)
        walk.send(target, walk.emit(kind, inputs, f"d.{target}") if kind else dy)
    for position, (update, norm, wanted) in rule.update.items():
        name = op.inputs[position] if position < len(op.inputs) else ""
        if name in trained:
            x, g = (operand(o) for o in wanted)
            yield Op(update, (x, g, name), (), name), Op(norm, (x, g), (), name)


def _append_clipped(walk: _Walk, updates: list[tuple[Op, Op]]) -> None:
    total = walk.emit("norm_zero", (), "norm")
    walk.ops += [replace(norm, inputs=(*norm.inputs, total)) for _, norm in updates]
    scale = walk.emit("norm_scale", (total,), "clip")
    walk.ops += [replace(update, inputs=(*update.inputs, scale)) for update, _ in updates]

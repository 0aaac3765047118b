"""THE table of operations: one row an op.

A row says how the outputs follow from the inputs (``shape``), what to do on the way back
(``gradient``), what it costs (``macs``), which operands an output may take the place of
(``in_place``), when and how it is run (``role``), its number in the image (``code``) and its
reference kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedtiny.engine import kernels
from fedtiny.engine.ir import F32, I32, Op, Tensor
from fedtiny.errors import GraphError

ShapeRule = Callable[[Sequence[Tensor | None]], list[tuple[tuple[int, ...], str]]]
Macs = Callable[[Sequence[Tensor | None]], int]

FORWARD, LOSS, BACKWARD = "forward", "loss", "backward"
UPDATE, NORM, SCALE = "update", "norm", "scale"
"""Roles. The kernel of an ``update`` or a ``norm`` returns a gradient, which moves the parameter or
is added to the squared norm (operand 2); that of a ``scale`` takes the clip as well."""


@dataclass(frozen=True, slots=True)
class GradientRule:
    """How an op sends its output's gradient back.

    ``data`` maps an input position to the kind of op that makes its gradient, with the operands to
    give it; ``update`` maps a parameter's position to the ops that update it and measure its norm,
    likewise. Operands: "dy" (gradient of the output), an input position, "y" (the output), None.
    """

    data: Mapping[int, tuple[str, tuple[int | str, ...]]]
    update: Mapping[int, tuple[str, str, tuple[int | str | None, ...]]]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table; see the module's docstring."""

    code: int
    shape: ShapeRule
    kernel: Callable[..., Any]
    macs: Macs = lambda tensors: 0
    gradient: GradientRule | None = None
    in_place: tuple[int, ...] = ()
    role: str = FORWARD


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise GraphError(message)


def _shape(tensor: Tensor | None) -> tuple[int, ...]:
    assert tensor is not None
    return tensor.shape


def _linear_shape(tensors: Sequence[Tensor | None]) -> list[tuple[tuple[int, ...], str]]:
    x, w = _shape(tensors[0]), _shape(tensors[1])
    _need(
        len(x) == 2 and len(w) == 2 and x[1] == w[0],
        f"linear takes x[batch, in] and weight[in, out]; got {x} and {w}",
    )
    if tensors[2] is not None:
        _need(_shape(tensors[2]) == (w[1],), f"linear bias {_shape(tensors[2])} is not ({w[1]},)")
    return [((x[0], w[1]), F32)]


def _same(tensors: Sequence[Tensor | None]) -> list[tuple[tuple[int, ...], str]]:
    return [(_shape(tensors[0]), F32)]


def _all_alike(tensors: Sequence[Tensor | None]) -> list[tuple[tuple[int, ...], str]]:
    shapes = [_shape(t) for t in tensors]
    _need(len(set(shapes)) == 1, f"the operands differ in shape: {shapes}")
    return [(shapes[0], F32)]


def _bias_shape(tensors: Sequence[Tensor | None]) -> list[tuple[tuple[int, ...], str]]:
    x, b = _shape(tensors[0]), _shape(tensors[1])
    _need(b == x[-1:], f"bias {b} does not fit the last axis of {x}")
    return [(x, F32)]


def _mse_shape(tensors: Sequence[Tensor | None]) -> list[tuple[tuple[int, ...], str]]:
    return [*_all_alike(tensors), ((1,), F32)]


def _cross_entropy_shape(tensors: Sequence[Tensor | None]) -> list[tuple[tuple[int, ...], str]]:
    z, label = tensors[0], tensors[1]
    assert z is not None
    assert label is not None
    _need(
        len(z.shape) == 2 and label.shape == z.shape[:1] and label.dtype == I32,
        f"cross-entropy takes logits[batch, classes] and int labels[batch]; got {z.shape} and "
        f"{label.shape} {label.dtype}",
    )
    return [(z.shape, F32), ((1,), F32)]


def _linear_dx_shape(tensors: Sequence[Tensor | None]) -> list[tuple[tuple[int, ...], str]]:
    dy, w = _shape(tensors[0]), _shape(tensors[1])
    return [((dy[0], w[0]), F32)]


def _scalar(tensors: Sequence[Tensor | None]) -> list[tuple[tuple[int, ...], str]]:
    return [((1,), F32)]


def _nothing(tensors: Sequence[Tensor | None]) -> list[tuple[tuple[int, ...], str]]:
    return []


def _matrix_macs(tensors: Sequence[Tensor | None]) -> int:
    """Batch x in x out, from the first two operands that share an axis."""
    a, b = _shape(tensors[0]), _shape(tensors[1])
    return a[0] * a[1] * b[1] if a[1] == b[0] else a[0] * b[0] * b[1]


def _outer_macs(tensors: Sequence[Tensor | None]) -> int:
    x, dy = _shape(tensors[0]), _shape(tensors[1])
    return x[0] * x[1] * dy[1]


def _element_macs(tensors: Sequence[Tensor | None]) -> int:
    return max(t.size for t in tensors if t is not None)


_FROM_OUTPUT: tuple[int | str, ...] = ("dy", "y")

TABLE: dict[str, Row] = {
    "linear": Row(
        1, _linear_shape, kernels.linear, _matrix_macs,
        GradientRule(
            data={0: ("linear_dx", ("dy", 1))},
            update={
                1: ("linear_update", "linear_norm", (0, "dy")),
                2: ("bias_update", "bias_norm", (None, "dy")),
            },
        ),
    ),
    "bias": Row(
        2, _bias_shape, kernels.bias, _element_macs,
        GradientRule(data={0: ("", ())}, update={1: ("bias_update", "bias_norm", (None, "dy"))}),
        in_place=(0,),
    ),
    "relu": Row(
        3, _same, kernels.relu, _element_macs,
        GradientRule(data={0: ("relu_dx", _FROM_OUTPUT)}, update={}), in_place=(0,),
    ),
    "tanh": Row(
        4, _same, kernels.tanh, _element_macs,
        GradientRule(data={0: ("tanh_dx", _FROM_OUTPUT)}, update={}), in_place=(0,),
    ),
    "sigmoid": Row(
        5, _same, kernels.sigmoid, _element_macs,
        GradientRule(data={0: ("sigmoid_dx", _FROM_OUTPUT)}, update={}), in_place=(0,),
    ),
    "add": Row(
        6, _all_alike, kernels.add, _element_macs,
        GradientRule(data={0: ("", ()), 1: ("", ())}, update={}), in_place=(0, 1),
    ),
    "mse": Row(16, _mse_shape, kernels.mse, _element_macs, in_place=(0,), role=LOSS),
    "cross_entropy": Row(
        17, _cross_entropy_shape, kernels.cross_entropy, _element_macs, in_place=(0,), role=LOSS
    ),
    "linear_dx": Row(32, _linear_dx_shape, kernels.linear_dx, _matrix_macs, role=BACKWARD),
    "relu_dx": Row(33, _same, kernels.relu_dx, _element_macs, in_place=(0,), role=BACKWARD),
    "tanh_dx": Row(34, _same, kernels.tanh_dx, _element_macs, in_place=(0,), role=BACKWARD),
    "sigmoid_dx": Row(35, _same, kernels.sigmoid_dx, _element_macs, in_place=(0,), role=BACKWARD),
    "linear_update": Row(64, _nothing, kernels.linear_gradient, _outer_macs, role=UPDATE),
    "bias_update": Row(65, _nothing, kernels.bias_gradient, _element_macs, role=UPDATE),
    "norm_zero": Row(80, _scalar, lambda total: total.fill(0), role=BACKWARD),
    "linear_norm": Row(81, _nothing, kernels.linear_gradient, _outer_macs, role=NORM),
    "bias_norm": Row(82, _nothing, kernels.bias_gradient, _element_macs, role=NORM),
    "norm_scale": Row(83, _scalar, kernels.norm_scale, in_place=(0,), role=SCALE),
}  # fmt: skip

BY_CODE: dict[int, str] = {row.code: kind for kind, row in TABLE.items()}


def produce(
    kind: str, inputs: tuple[str, ...], outputs: tuple[str, ...], tensors: Mapping[str, Tensor]
) -> tuple[Op, list[Tensor]]:
    """An op and its output tensors, with the shapes that the table gives.

    Raises GraphError when the kind is unknown or the operands do not fit together.
    """
    if kind not in TABLE:
        raise GraphError(f"there is no op {kind!r}; there are {sorted(TABLE)}")
    operands = [tensors[name] if name else None for name in inputs]
    made = TABLE[kind].shape(operands)
    return Op(kind, inputs, outputs), [
        Tensor(name, shape, dtype) for name, (shape, dtype) in zip(outputs, made, strict=True)
    ]


def macs(op: Op, tensors: Mapping[str, Tensor]) -> int:
    """Multiply-accumulates of one op (elements, for element-wise ops)."""
    return TABLE[op.kind].macs([tensors[name] if name else None for name in op.operands])

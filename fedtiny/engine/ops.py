"""THE table of operations: one row an op.

A row says how the outputs follow from the inputs (``shape``), what to do on the way back
(``gradient``), what it costs (``macs``), which operands an output may take the place of
(``in_place``), when and how it is run (``role``), its number in the image (``code``) and its
reference kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from fedtiny.engine import shapes
from fedtiny.engine.ir import Attributes, Op, Region, Scalars, Tensor, Window
from fedtiny.engine.kernels import (
    channels,
    conv,
    elementwise,
    int8,
    linear,
    loss,
    norm,
    patch,
    pool,
    sparse,
    update,
)
from fedtiny.engine.shapes import Rule, Shape
from fedtiny.errors import GraphError

Macs = Callable[[Sequence[Shape], Any], int]
Kernel = Callable[..., Any]

FORWARD, TRACK, LOSS, BACKWARD = "forward", "track", "loss", "backward"
UPDATE, NORM, GRADIENT, SCALE = "update", "norm", "gradient", "scale"
"""Roles. The kernel of an ``update`` or a ``gradient`` returns the gradient of operand 2, which
moves it or is added to it; that of a ``norm`` returns what is added to the sum at operand 2; that
of a ``scale`` takes the clip as well. A ``track`` is a forward op that moves its running statistics
in a step; its kernel takes which statistics to use as well."""

BUFFERED = "gradient"
"""The family of a gradient that stands in a buffer; the others are called after a layer."""
SPARSE = "sparse_conv"
"""The family of the weights of which only live ones are stored. It needs no sums in buffers."""

MERGE = "merge"
"""The op that makes a weight of a parameter and an overlay, which an update may have moved."""

REAL, STORED, SCALED = "real", "stored", "scaled"
"""How a kernel takes operands of int8: as the real values that they stand for, as they are stored,
or as an `Int8`, which has their scale."""

Operand = int | str | None
"""Of a forward op, for an op on its way back: an input's position, "dy" (gradient of the output),
"y" (the output), "aux" (the second output), None."""


def inherited(op: Op, tensors: Mapping[str, Tensor]) -> Attributes:
    """Those of the forward op."""
    return op.attributes


@dataclass(frozen=True, slots=True)
class Way:
    """The op that makes the gradient of an input; "" if it is the gradient of the output."""

    kind: str = ""
    operands: tuple[Operand, ...] = ()
    attributes: Callable[[Op, Mapping[str, Tensor]], Attributes] = inherited


@dataclass(frozen=True, slots=True)
class GradientRule:
    """How an op sends its output's gradient back.

    ``data`` maps an input's position to the way to its gradient; ``parameters`` maps a parameter's
    position to the family (``linear`` has linear_update, linear_norm and linear_gradient) that
    makes its gradient, with the operands: input, gradient of the output, codes.
    """

    data: Mapping[int, Way]
    parameters: Mapping[int, tuple[str, tuple[Operand, ...]]]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table; see the module's docstring.

    ``inputs`` of its inputs stand before its outputs in an image, of which there are up to
    ``outputs``. ``rows`` gives the losses of the rows of a batch. ``takes`` says how the kernel
    takes operands of int8.
    """

    code: int
    shape: Rule
    kernel: Kernel
    macs: Macs
    gradient: GradientRule | None = None
    in_place: tuple[int, ...] = ()
    role: str = FORWARD
    attributes: type[Window] | type[Scalars] | type[Region] | None = None
    inputs: int = 1
    outputs: int = 1
    rows: Kernel | None = None
    takes: str = REAL


# ---- costs -----------------------------------------------------------------------------------


def _element_macs(operands: Sequence[Shape], attributes: Any) -> int:
    return max(prod(shape) for shape in operands)


def _made_macs(operands: Sequence[Shape], attributes: Any) -> int:
    """Every element of the output."""
    return prod(operands[-1])


def _region_macs(operands: Sequence[Shape], region: Region) -> int:
    """Every element of the region."""
    return prod((operands[-1][0], region.height, region.width, operands[-1][-1]))


def _matrix_macs(operands: Sequence[Shape], attributes: Any) -> int:
    """Batch x in x out, of a tensor and a weight."""
    return operands[0][0] * prod(operands[1])


def _outer_macs(operands: Sequence[Shape], attributes: Any) -> int:
    """Batch x in x out, of two tensors."""
    return prod(operands[0]) * operands[1][-1]


def _tap_macs(y: int, w: int) -> Macs:
    """Every weight of a channel for every place of it in operand y."""
    return lambda operands, window: prod(operands[y]) * prod(operands[w][:-1])


def _conv_pool_macs(operands: Sequence[Shape], window: Window) -> int:
    return prod(operands[3]) * prod(operands[1][:-1]) * window.taps


def _pool_macs(y: int) -> Macs:
    return lambda operands, window: prod(operands[y]) * window.taps


# ---- families of rows ------------------------------------------------------------------------


def _activation(
    code: int, kernel: Kernel, back: str, of: Operand = "y", shape: Rule = shapes.same,
    attributes: type[Scalars] | None = None, outputs: int = 1,
) -> Row:  # fmt: skip
    rule = GradientRule({0: Way(back, ("dy", of))}, {})
    return Row(code, shape, kernel, _element_macs, rule, (0,), attributes=attributes,
               outputs=outputs)  # fmt: skip


def _activation_dx(code: int, kernel: Kernel, attributes: type[Scalars] | None = None) -> Row:
    return Row(code, shapes.alike, kernel, _element_macs, in_place=(0,), role=BACKWARD,
               attributes=attributes, inputs=2)  # fmt: skip


def _loss(code: int, shape: Rule, kernel: Kernel, rows: Kernel) -> Row:
    return Row(code, shape, kernel, _element_macs, in_place=(0,), role=LOSS, inputs=2, outputs=2,
               rows=rows)  # fmt: skip


def _back(
    code: int, shape: Rule, kernel: Kernel, macs: Macs, inputs: int,
    attributes: type[Window] | type[Scalars] | None = None, in_place: tuple[int, ...] = (),
) -> Row:  # fmt: skip
    return Row(code, shape, kernel, macs, None, in_place, BACKWARD, attributes, inputs)


def _parameter(
    family: str, code: int, kernel: Kernel, macs: Macs, norm_macs: Macs | None = None,
    attributes: type[Window] | None = None, norm: Callable[[Kernel], Kernel] = update.norm_by_rows,
) -> dict[str, Row]:  # fmt: skip
    """The update of a parameter, the norm of its gradient, and the sum of gradients in a buffer."""

    def row(offset: int, role: str, kernel: Kernel, macs: Macs) -> Row:
        return Row(code + offset, shapes.nothing, kernel, macs, role=role, attributes=attributes,
                   outputs=0)  # fmt: skip

    rows = {
        f"{family}_update": row(0, UPDATE, kernel, macs),
        f"{family}_norm": row(32, NORM, norm(kernel), norm_macs or macs),
    }
    if family not in (BUFFERED, SPARSE):
        rows[f"{family}_gradient"] = row(64, GRADIENT, kernel, macs)
    return rows


def _second(op: Op, tensors: Mapping[str, Tensor]) -> Scalars:
    return Scalars(number=tensors[op.inputs[0]].shape[-1])


def _first(op: Op, tensors: Mapping[str, Tensor]) -> Scalars:
    return Scalars()


def _eps(op: Op, tensors: Mapping[str, Tensor]) -> Attributes:
    """Without the momentum."""
    assert isinstance(op.attributes, Scalars)
    return Scalars(value=op.attributes.value)


_NORMALIZED: tuple[Operand, ...] = ("dy", "y", "aux")
_BIAS: tuple[str, tuple[Operand, ...]] = ("bias", (None, "dy"))

# ---- the table -------------------------------------------------------------------------------

_FORWARD: dict[str, Row] = {
    "linear": Row(
        1, shapes.linear, linear.linear, _matrix_macs,
        GradientRule({0: Way("linear_dx", ("dy", 1))}, {1: ("linear", (0, "dy")), 2: _BIAS}),
        inputs=3,
    ),
    "bias": Row(
        2, shapes.per_channel, linear.bias, _element_macs, GradientRule({0: Way()}, {1: _BIAS}),
        in_place=(0,), inputs=2,
    ),
    "relu": _activation(3, elementwise.relu, "relu_dx", shape=shapes.masked, outputs=2),
    "tanh": _activation(4, elementwise.tanh, "tanh_dx"),
    "sigmoid": _activation(5, elementwise.sigmoid, "sigmoid_dx"),
    "add": Row(
        6, shapes.alike, elementwise.add, _element_macs, GradientRule({0: Way(), 1: Way()}, {}),
        in_place=(0, 1), inputs=2,
    ),
    "relu6": _activation(7, elementwise.relu6, "relu6_dx", shape=shapes.masked, outputs=2),
    "leaky_relu": _activation(
        8, elementwise.leaky_relu, "leaky_relu_dx", shape=shapes.sloped, attributes=Scalars,
        outputs=2,
    ),
    "hardswish": _activation(9, elementwise.hardswish, "hardswish_dx", of=0),
    "softmax": _activation(10, elementwise.softmax, "softmax_dx"),
    "concat": Row(
        11, shapes.concat, elementwise.concat, _element_macs,
        GradientRule({0: Way("slice", ("dy",), _first), 1: Way("slice", ("dy",), _second)}, {}),
        inputs=2,
    ),
    "reshape": Row(
        12, shapes.reshape, elementwise.reshape, _element_macs,
        GradientRule({0: Way("reshape", ("dy",))}, {}), in_place=(0,), takes=STORED,
    ),
    "conv": Row(
        16, shapes.conv, conv.conv, _tap_macs(3, 1),
        GradientRule({0: Way("conv_dx", ("dy", 1))}, {1: ("conv", (0, "dy")), 2: _BIAS}),
        attributes=Window, inputs=3,
    ),
    "conv_pool": Row(
        17, shapes.conv_pool, conv.conv_pool, _conv_pool_macs,
        GradientRule({}, {1: ("conv_pool", (0, "dy", "aux")), 2: _BIAS}),
        attributes=Window, inputs=3, outputs=2,
    ),
    "max_pool": Row(
        18, shapes.max_pool, pool.max_pool, _pool_macs(1),
        GradientRule({0: Way("max_pool_dx", ("dy", "aux"))}, {}), attributes=Window, outputs=2,
    ),
    "avg_pool": Row(
        19, shapes.avg_pool, pool.avg_pool, _pool_macs(1),
        GradientRule({0: Way("avg_pool_dx", ("dy",))}, {}), attributes=Window,
    ),
    SPARSE: Row(
        20, shapes.sparse_conv, sparse.sparse_conv, _tap_macs(3, 1),
        GradientRule({0: Way("sparse_conv_dx", ("dy", 1))}, {1: (SPARSE, (0, "dy")), 2: _BIAS}),
        attributes=Window, inputs=3,
    ),
    "take": Row(
        40, shapes.take, channels.take, _made_macs, GradientRule({}, {}), inputs=2, takes=STORED,
    ),
    MERGE: Row(
        41, shapes.merge, channels.merge, _made_macs, GradientRule({}, {}), attributes=Scalars,
        inputs=3, takes=STORED,
    ),
    "crop": Row(
        43, shapes.crop, patch.crop, _region_macs,
        GradientRule({0: Way("paste", (None, "dy"))}, {}),
        attributes=Region, takes=STORED,
    ),
    "paste": Row(
        44, shapes.paste, patch.paste, _region_macs,
        GradientRule({1: Way("crop", ("dy",)), 0: Way("paste", ("dy", None))}, {}),
        in_place=(0,), attributes=Region, inputs=2, takes=STORED,
    ),
    "conv8": Row(
        34, shapes.conv8, int8.conv8, _tap_macs(3, 1), attributes=Window, inputs=3, takes=SCALED,
    ),
    "add8": Row(
        36, shapes.add8, int8.add8, _element_macs, in_place=(0, 1), inputs=2, takes=SCALED,
    ),
    "avg_pool8": Row(
        37, shapes.avg_pool8, int8.avg_pool8, _pool_macs(1), attributes=Window, takes=SCALED,
    ),
    "max_pool8": Row(
        38, shapes.max_pool8, int8.max_pool8, _pool_macs(1), attributes=Window, outputs=2,
        takes=SCALED,
    ),
    "mask8": Row(
        39, shapes.mask8, int8.mask8, _element_macs, attributes=Scalars, takes=SCALED,
    ),
    "affine": Row(
        24, shapes.per_channel, norm.affine, _element_macs,
        GradientRule({0: Way("affine_dx", ("dy", 1))}, {1: ("affine", (0, "dy")), 2: _BIAS}),
        in_place=(0,), inputs=3,
    ),
    "batch_normalize": Row(
        25, shapes.batch_normalize, norm.batch_normalize, _element_macs,
        GradientRule({0: Way("batch_normalize_dx", _NORMALIZED)}, {}), (0,), attributes=Scalars,
        outputs=2,
    ),
    "group_normalize": Row(
        26, shapes.group_normalize, norm.group_normalize, _element_macs,
        GradientRule({0: Way("group_normalize_dx", _NORMALIZED)}, {}), (0,), attributes=Scalars,
        outputs=2,
    ),
    "frozen_normalize": Row(
        27, shapes.frozen_normalize, norm.frozen_normalize, _element_macs,
        GradientRule({0: Way("frozen_normalize_dx", ("dy", 2))}, {}), (0,), attributes=Scalars,
        inputs=3,
    ),
    "tracked_normalize": Row(
        29, shapes.tracked_normalize, norm.tracked_normalize, _element_macs,
        GradientRule({0: Way("batch_normalize_dx", _NORMALIZED, _eps)}, {}), (0,), TRACK, Scalars,
        inputs=3, outputs=2,
    ),
    "mse": _loss(64, shapes.loss_alike, loss.mse, loss.mse_rows),
    "cross_entropy": _loss(65, shapes.loss_by_class, loss.cross_entropy, loss.cross_entropy_rows),
    "soft_cross_entropy": _loss(
        66, shapes.loss_by_distribution, loss.soft_cross_entropy, loss.soft_cross_entropy_rows
    ),
    "weighted_cross_entropy": _loss(
        67, shapes.loss_by_class, loss.weighted_cross_entropy, loss.cross_entropy_rows
    ),
}  # fmt: skip

_BACKWARD: dict[str, Row] = {
    "linear_dx": _back(80, shapes.linear_dx, linear.linear_dx, _matrix_macs, 2),
    "relu_dx": _activation_dx(81, elementwise.relu_dx),
    "tanh_dx": _activation_dx(82, elementwise.tanh_dx),
    "sigmoid_dx": _activation_dx(83, elementwise.sigmoid_dx),
    "relu6_dx": _activation_dx(84, elementwise.relu6_dx),
    "leaky_relu_dx": _activation_dx(85, elementwise.leaky_relu_dx, Scalars),
    "hardswish_dx": _activation_dx(86, elementwise.hardswish_dx),
    "softmax_dx": _activation_dx(87, elementwise.softmax_dx),
    "mask_dx": _back(88, shapes.unmasked, elementwise.mask_dx, _element_macs, 2, Scalars, (0,)),
    "slice": _back(89, shapes.channels, elementwise.slice_channels, _element_macs, 1, Scalars),
    "conv_dx": _back(96, shapes.conv_dx, conv.conv_dx, _tap_macs(0, 1), 2, Window),
    "max_pool_dx": _back(97, shapes.max_pool_dx, pool.max_pool_dx, _pool_macs(0), 2, Window),
    "avg_pool_dx": _back(98, shapes.avg_pool_dx, pool.avg_pool_dx, _pool_macs(0), 1, Window),
    "sparse_conv_dx": _back(
        99, shapes.sparse_conv_dx, sparse.sparse_conv_dx, _tap_macs(0, 1), 2, Window
    ),
    "affine_dx": _back(104, shapes.per_channel, norm.affine_dx, _element_macs, 2, None, (0,)),
    "batch_normalize_dx": _back(
        105, shapes.same, norm.batch_normalize_dx, _element_macs, 3, Scalars, (0,)
    ),
    "group_normalize_dx": _back(
        106, shapes.same, norm.group_normalize_dx, _element_macs, 3, Scalars, (0,)
    ),
    "frozen_normalize_dx": _back(
        107, shapes.per_channel, norm.frozen_normalize_dx, _element_macs, 2, Scalars, (0,)
    ),
    "zero": _back(120, shapes.zeros, update.zero, _element_macs, 0),
    "norm_scale": Row(
        121, shapes.scalar, update.norm_scale, _element_macs, in_place=(0,), role=SCALE
    ),
}

TABLE: dict[str, Row] = {
    **_FORWARD,
    **_BACKWARD,
    **_parameter("linear", 128, linear.linear_gradient, _outer_macs),
    **_parameter("bias", 129, linear.bias_gradient, _element_macs),
    **_parameter("conv", 130, conv.conv_gradient, _tap_macs(1, 2), _tap_macs(1, 3), Window,
                 update.norm_by_columns),
    **_parameter("conv_pool", 131, conv.conv_pool_gradient, _tap_macs(1, 2), _tap_macs(1, 3),
                 Window, update.norm_by_columns),
    **_parameter("affine", 132, norm.affine_gradient, _element_macs),
    **_parameter(BUFFERED, 133, update.buffered_gradient, _element_macs),
    **_parameter(SPARSE, 134, sparse.sparse_conv_gradient, _tap_macs(1, 2), _tap_macs(1, 3), Window,
                 sparse.norm_of_live),
}  # fmt: skip

BY_CODE: dict[int, str] = {row.code: kind for kind, row in TABLE.items()}


def produce(
    kind: str, inputs: tuple[str, ...], outputs: tuple[str, ...], tensors: Mapping[str, Tensor],
    attributes: Attributes = None, like: Shape = (),
) -> tuple[Op, list[Tensor]]:  # fmt: skip
    """An op and its output tensors, with the shapes that the table gives. Of the outputs that an op
    may have, the last may be left out.

    Raises GraphError when the kind is unknown or the operands do not fit together.
    """
    if kind not in TABLE:
        raise GraphError(f"there is no op {kind!r}; there are {sorted(TABLE)}")
    made = TABLE[kind].shape(_shapes(inputs, tensors), attributes, like)
    return Op(kind, inputs, outputs, attributes=attributes), [
        Tensor(name, shape, dtype) for name, (shape, dtype) in zip(outputs, made, strict=False)
    ]


def _shapes(names: Sequence[str], tensors: Mapping[str, Tensor]) -> list[Shape]:
    return [tensors[name].shape if name else () for name in names]


def arranged(op: Op) -> tuple[str, ...]:
    """The operands in the order of an image, in which a kernel takes them."""
    leading = TABLE[op.kind].inputs if op.outputs else len(op.inputs)
    return op.inputs[:leading] + op.outputs + op.inputs[leading:]


def macs(op: Op, tensors: Mapping[str, Tensor]) -> int:
    """Multiply-accumulates of one op (elements, for element-wise ops)."""
    return TABLE[op.kind].macs(_shapes(op.operands, tensors), op.attributes)

"""What the operations of torch.export do, in the builder's terms: one rule each.

A rule takes the conversion and the arguments that torch gives the operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from fedtiny.engine.builder import Value
from fedtiny.engine.torch_values import (
    BATCH,
    NO_PADDING,
    Conversion,
    Placed,
    Weight,
    channels_last,
    made,
    module_type,
    op_name,
)  # fmt: skip

Rule = Callable[..., Placed]


def carry_out(c: Conversion, node: Node) -> None:
    """Give the node its value. Raises GraphError naming the node when there is no rule for it."""
    c.node = node
    name = op_name(node)
    in_place = name.endswith("_")
    if in_place and (counter := _batch_counter(c, node)):
        c.values[node] = counter
        return
    args, kwargs = _operands(c, node)
    _check_operands(c, name, args)
    rule = RULES.get(name.rstrip("_"))
    if rule is None:
        raise c.refuse(f"cannot be compiled; {_remedy(name, module_type(node))}")
    result = rule(c, *args, **kwargs)
    c.values[node] = _overwrite(c, args[0], result) if in_place else result


def _operands(c: Conversion, node: Node) -> Any:
    """Its arguments, with values and weights in the place of nodes."""
    known: Any = c.values.__getitem__
    return map_arg(cast("Any", (node.args, node.kwargs)), known)


def _check_operands(c: Conversion, name: str, args: Sequence[object]) -> None:
    """Parameters are operands of layers alone, and layers have no other weights."""
    if args and isinstance(args[0], Weight):
        c.plain(args[0])
    if not name.startswith("add") and any(isinstance(a, Placed) for a in args[1:]):
        raise c.refuse("has a computed weight; devices need a parameter there")


def _batch_counter(c: Conversion, node: Node) -> Weight | None:
    """The counter of a batch normalisation that it moves, which changes no result; else None."""
    target = node.args[0]
    counted = c.values.get(target) if isinstance(target, Node) else None
    is_counter = isinstance(counted, Weight) and not counted.tensor.is_floating_point()
    return cast("Weight", counted) if is_counter else None


def _overwrite(c: Conversion, old: Placed, new: Placed) -> Placed:
    """An operation in place changes all views of its operand."""
    for node, known in c.values.items():
        if isinstance(known, Placed) and known.memory is old.memory:
            c.values[node] = replace(known, value=new.value)
    return replace(new, memory=old.memory)


# ---- layers with weights ---------------------------------------------------------------------


def _linear(c: Conversion, x: Placed, weight: Weight, bias: Weight | None = None) -> Placed:
    rank, features = x.places.dim() - 1, weight.tensor.shape[0]
    if rank > 1:
        return _pointwise(c, x, weight, bias)
    value, stored = c.plain(x), torch.argsort(x.places[0])

    def make(biased: bool, name: str) -> Value:
        return c.net.linear(value, features, bias=biased, name=name)

    return made(c.layer(make, weight, bias, lambda w: w.t()[stored]), (0,))


def _pointwise(c: Conversion, x: Placed, weight: Weight, bias: Weight | None) -> Placed:
    """A linear layer at every position: a convolution of kernel 1."""
    order = tuple(range(x.places.dim() - 1))
    value, features = c.stored(x, order), weight.tensor.shape[0]

    def make(biased: bool, name: str) -> Value:
        return c.net.conv(value, features, 1, bias=biased, name=name)

    ones = [1] * (len(order) - 1)
    return made(c.layer(make, weight, bias, lambda w: w.t().reshape(*ones, *w.t().shape)), order)


def _conv(
    c: Conversion, x: Placed, weight: Weight, bias: Weight | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Placed:  # fmt: skip
    spatial = weight.tensor.dim() - 2
    if set(_sizes(dilation, spatial)) != {1}:
        raise c.refuse(f"has dilation {dilation}; use a larger kernel, or a stride")
    kernel = tuple(weight.tensor.shape[2:])
    pads = map(sum, zip(_pads(padding, kernel), x.padding, strict=True))
    value = c.channels_last(replace(x, padding=NO_PADDING))
    window = (_extent(kernel), _extent(_sizes(stride, spatial)), tuple(pads))

    def make(biased: bool, name: str) -> Value:
        features = weight.tensor.shape[0]
        return c.net.conv(value, features, *window, groups=groups, bias=biased, name=name)  # type: ignore[arg-type]

    axes = (*range(2, 2 + spatial), 1, 0)
    return made(c.layer(make, weight, bias, lambda w: w.permute(axes)), channels_last(spatial + 1))


def _sizes(given: Any, axes: int) -> tuple[int, ...]:
    given = [given] if isinstance(given, int) else list(given)
    return tuple(given * axes if len(given) == 1 else given)


def _extent(sizes: tuple[int, ...]) -> int | tuple[int, ...]:
    """As the builder takes them: a number for what has one axis."""
    return sizes[0] if len(sizes) == 1 else sizes


def _pads(padding: Any, kernel: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right."""
    if padding == "same":  # torch allows it for stride 1 alone
        before = [(k - 1) // 2 for k in kernel]
        after = [k - 1 - b for k, b in zip(kernel, before, strict=True)]
    else:
        before = after = list(_sizes(0 if padding == "valid" else padding, len(kernel)))
    (top, left), (bottom, right) = ([0, 0, *side][-2:] for side in (before, after))
    return top, left, bottom, right


# ---- normalisations --------------------------------------------------------------------------


def _batch_norm(
    c: Conversion, x: Placed, weight: Weight | None, bias: Weight | None, mean: Weight | None,
    var: Weight | None, training: bool, momentum: float, eps: float, cudnn: bool = False,
) -> Placed:  # fmt: skip
    if c.node in c.folded:
        return x
    value = c.channels_last(x)
    name = _norm_name(c, weight, mean)
    c.affine(name, weight, bias, value.shape[-1])
    if mean and var:
        c.hold(f"{name}.running_mean", mean)
        c.hold(f"{name}.running_var", var)
    tracked = training and mean is not None
    normal = c.net.batch_norm(value, not training, tracked, eps, momentum, name)
    return made(normal, channels_last(x.places.dim() - 1))


def _instance_norm(
    c: Conversion, x: Placed, weight: Weight | None, bias: Weight | None, mean: Weight | None,
    var: Weight | None, of_sample: bool, momentum: float, eps: float, cudnn: bool = False,
) -> Placed:  # fmt: skip
    if not of_sample:
        return _batch_norm(c, x, weight, bias, mean, var, False, momentum, eps)
    return _group_norm(c, x, x.places.shape[1], weight, bias, eps)


def _group_norm(
    c: Conversion, x: Placed, groups: int, weight: Weight | None = None,
    bias: Weight | None = None, eps: float = 1e-5, cudnn: bool = False,
) -> Placed:  # fmt: skip
    value, name = c.channels_last(x), _norm_name(c, weight)
    c.affine(name, weight, bias, value.shape[-1])
    normal = c.net.group_norm(value, groups, eps=eps, name=name)
    return made(normal, channels_last(x.places.dim() - 1))


def _layer_norm(
    c: Conversion, x: Placed, shape: Sequence[int], weight: Weight | None = None,
    bias: Weight | None = None, eps: float = 1e-5, cudnn: bool = False,
) -> Placed:  # fmt: skip
    count = x.places[0].numel()
    if math.prod(shape) != count:
        raise c.refuse(
            f"normalises {tuple(shape)} of {tuple(x.places.shape[1:])}; it can only be over a "
            "whole sample; use GroupNorm(1, channels)"
        )
    name, stored = _norm_name(c, weight), torch.argsort(x.places[0].flatten())
    value = c.shaped(c.plain(x), (count,))
    c.affine(name, weight, bias, count, lambda w: w.flatten()[stored])
    return Placed(c.net.group_norm(value, 1, eps=eps, name=name), x.places)


def _norm_name(c: Conversion, *weights: Weight | None) -> str:
    """That of the module's tensors; without any, that of its place in the graph."""
    return next((w.owner for w in weights if w), c.node.name)


# ---- what has no weights ---------------------------------------------------------------------


def _elementwise(layer: str) -> Rule:
    def rule(c: Conversion, x: Placed) -> Placed:
        return Placed(getattr(c.net, layer)(c.plain(x)), x.places)

    return rule


def _leaky_relu(c: Conversion, x: Placed, slope: float = 0.01) -> Placed:
    return Placed(c.net.leaky_relu(c.plain(x), slope=slope), x.places)


def _hardtanh(c: Conversion, x: Placed, low: float = -1.0, high: float = 1.0) -> Placed:
    if (low, high) != (0, 6):
        raise c.refuse(f"from {low} to {high} cannot be compiled; use ReLU6 or Tanh")
    return Placed(c.net.relu6(c.plain(x)), x.places)


def _softmax(c: Conversion, x: Placed, dim: int, dtype: object = None) -> Placed:
    axes = list(range(x.places.dim() - 1))
    axis = axes.pop(dim % x.places.dim() - 1)
    return made(c.net.softmax(c.stored(x, (*axes, axis))), (*axes, axis))


def _dropout(c: Conversion, x: Placed, rate: float = 0.5, train: bool = False) -> Placed:
    if train and rate:
        raise c.refuse(
            f"drops {rate:g} of its input in training, which devices do not; call .eval() on it "
            "before compiling, or leave it out"
        )
    return x


def _add(c: Conversion, a: Placed, b: Placed, alpha: float = 1) -> Placed:
    left, right = c.plain(a), c.plain(b)
    if alpha != 1 or a.places.shape != b.places.shape:
        raise c.refuse(
            f"adds {alpha} times {tuple(b.places.shape[1:])} to {tuple(a.places.shape[1:])}; it "
            "takes two values of one shape, unscaled"
        )
    if not torch.equal(a.places, b.places):
        raise c.refuse(
            "adds values that the device stores in different orders; add them before the flatten "
            "or permute of one of them"
        )
    return Placed(c.net.add(left, c.shaped(right, left.shape)), a.places)


def _cat(c: Conversion, parts: Sequence[Placed], dim: int = 0) -> Placed:
    joined = parts[0]
    for part in parts[1:]:
        joined = _cat_two(c, joined, part, dim % part.places.dim())
    return joined


def _cat_two(c: Conversion, a: Placed, b: Placed, dim: int) -> Placed:
    if dim == 0:
        raise c.refuse("joins samples; join channels (dim=1)")
    axes = [axis for axis in range(a.places.dim() - 1) if axis != dim - 1]
    if not axes:
        return _cat_flat(c, a, b)
    order = (*axes, dim - 1)
    return made(c.net.concat(c.stored(a, order), c.stored(b, order)), order)


def _cat_flat(c: Conversion, a: Placed, b: Placed) -> Placed:
    """Behind each other, each in its own stored order."""
    sizes = [x.places.shape[1] for x in (a, b)]
    values = [c.shaped(c.plain(x), (size,)) for x, size in zip((a, b), sizes, strict=True)]
    one = torch.cat([a.places[0], b.places[0] + sizes[0]])
    return Placed(c.net.concat(*values), torch.stack([one, one + len(one)]))


def _pad(
    c: Conversion, x: Placed, sides: Sequence[int], mode: str = "constant", fill: float | None = 0
) -> Placed:
    spatial = x.places.dim() - 2
    left, right, top, bottom = [*sides, 0, 0, 0, 0][:4]
    if mode != "constant" or fill or min(sides) < 0 or any(sides[2 * spatial :]):
        raise c.refuse(f"pads {list(sides)} by {mode}; pad height and width alone, and by zeros")
    more = zip(x.padding, (top, left, bottom, right), strict=True)
    return replace(x, padding=tuple(map(sum, more)))  # type: ignore[arg-type]


def _view(c: Conversion, x: Placed, *arguments: Any, **named: Any) -> Placed:
    """What torch does to the places."""
    c.plain(x)
    places = c.node.target(x.places.contiguous(), *arguments, **named)  # type: ignore[operator]
    count = x.places[0].numel()
    if len(places) != BATCH or not torch.equal(places[1], places[0] + count):
        raise c.refuse("moves or joins the batch axis; the first must stay that of the samples")
    if not torch.equal(places[0].flatten().sort().values, torch.arange(count)):
        raise c.refuse("takes a part of a value, or repeats it; use a convolution or a pooling")
    return replace(x, places=places)


def _copy(c: Conversion, x: Placed, memory_format: object = None) -> Placed:
    return replace(x, memory=object())


# ---- pooling ---------------------------------------------------------------------------------


def _max_pool(
    c: Conversion, x: Placed, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False,
) -> Placed:  # fmt: skip
    spatial = x.places.dim() - 2
    if set(_sizes(dilation, spatial)) != {1}:
        raise c.refuse(f"has dilation {dilation}; use a larger kernel, or a stride")
    size, steps = _sizes(kernel, spatial), _sizes(stride or kernel, spatial)
    value = c.channels_last(x)
    top, left, bottom, right = _pads(padding, size)
    lower, wider = _uncovered(c, x, size, steps, _sizes(padding, spatial))
    pads = (top, left, bottom + lower, right + wider)
    pooled = c.net.max_pool(value, _extent(size), _extent(steps), pads)  # type: ignore[arg-type]
    return made(pooled, channels_last(spatial + 1))


def _avg_pool(
    c: Conversion, x: Placed, kernel: Any, stride: Any = (), padding: Any = 0,
    ceil_mode: bool = False, count_padding: bool = True, divisor: int | None = None,
) -> Placed:  # fmt: skip
    spatial = x.places.dim() - 2
    size, steps = _sizes(kernel, spatial), _sizes(stride or kernel, spatial)
    pads = _sizes(padding, spatial)
    uncovered = any(_uncovered(c, x, size, steps, pads))
    if uncovered or divisor or (any(pads) and not count_padding):
        raise c.refuse("divides by the samples it finds; leave ceil_mode, count_include_pad and "
                       "divisor_override at their defaults")  # fmt: skip
    value = c.channels_last(x)
    args = _extent(size), _extent(steps), _pads(padding, size)
    return made(c.net.avg_pool(value, *args), channels_last(spatial + 1))  # type: ignore[arg-type]


def _uncovered(
    c: Conversion, x: Placed, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int]:
    """How far torch's last windows reach below and right of the padded image (ceil_mode)."""
    extents = zip(
        x.places.shape[2:], c.node.meta["val"].shape[2:], kernel, stride, padding, strict=True
    )
    beyond = [max(0, (out - 1) * s + k - (size + 2 * p)) for size, out, k, s, p in extents]
    below, right = [0, *beyond][-2:]
    return below, right


def _adaptive_avg_pool(c: Conversion, x: Placed, output: Any) -> Placed:
    sizes = x.places.shape[2:]
    wanted = _sizes(output, len(sizes))
    if set(wanted) == {1}:
        return _mean(c, x, range(2, x.places.dim()), keepdim=True)
    if any(size % want for size, want in zip(sizes, wanted, strict=True)):
        raise c.refuse(f"makes {wanted} of {tuple(sizes)}; the sizes must divide")
    kernel = [size // want for size, want in zip(sizes, wanted, strict=True)]
    return _avg_pool(c, x, kernel)


def _mean(
    c: Conversion, x: Placed, dims: Sequence[int] | None = None, keepdim: bool = False,
    dtype: object = None,
) -> Placed:  # fmt: skip
    rank = x.places.dim()
    over = sorted(d % rank - 1 for d in (range(rank) if dims is None else dims))
    if over[0] < 0:
        raise c.refuse("averages over the samples; name the axes of one sample")
    kept = [axis for axis in range(rank - 1) if axis not in over]
    spatial, features = ([x.places.shape[a + 1] for a in axes] for axes in (over, kept))
    value = c.shaped(c.stored(x, (*over, *kept)), (*spatial, math.prod(features)))
    pooled = c.net.global_avg_pool(value)
    shape = [1 if a in over else x.places.shape[a + 1] for a in range(rank - 1)]
    places = made(pooled, (0,)).places.view(BATCH, *(shape if keepdim else features))
    return Placed(pooled, places)


RULES: Mapping[str, Rule] = {
    "linear": _linear,
    **dict.fromkeys(("conv1d", "conv2d"), _conv),
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    **{name: _elementwise(name) for name in ("relu", "relu6", "hardswish", "tanh", "sigmoid")},
    "leaky_relu": _leaky_relu,
    "hardtanh": _hardtanh,
    "softmax": _softmax,
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), _dropout),
    "add": _add,
    **dict.fromkeys(("cat", "concat"), _cat),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys(("max_pool1d", "max_pool2d"), _max_pool),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d"), _avg_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d"), _adaptive_avg_pool),
    "mean": _mean,
    **dict.fromkeys(
        ("flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose",
         "slice", "select", "contiguous", "alias"), _view,
    ),
    "clone": _copy,
}  # fmt: skip
"""Rules by the name of the operation; one in place (``relu_``) has that of its other form."""

_REMEDIES = (
    (("gelu", "silu", "mish", "elu", "celu", "selu", "softplus", "prelu", "hardsigmoid", "rrelu",
      "threshold", "softsign", "logsigmoid", "clamp", "clamp_min"),
     "use ReLU, ReLU6, LeakyReLU or Hardswish"),
    (("detach",), "freeze the layers before it by requires_grad_(False)"),
    (("log_softmax",), "leave it out: the loss cross_entropy takes logits"),
    (("conv_transpose1d", "conv_transpose2d", "upsample_nearest2d", "upsample_bilinear2d",
      "pixel_shuffle"), "models end in [batch, features]; use Conv2d and a Linear head"),
    (("conv3d", "max_pool3d", "avg_pool3d"), "use Conv2d over a sample's slices as channels"),
    (("lstm", "gru", "rnn_tanh", "rnn_relu", "LSTM", "GRU", "RNN"), "use Conv1d over time"),
    (("embedding",), "give features as floats, and use a Linear layer"),
    (("matmul", "mm", "bmm", "einsum", "scaled_dot_product_attention"),
     "attention is not built; use Linear or Conv1d layers"),
    (("max_pool2d_with_indices", "adaptive_max_pool2d", "max", "amax"),
     "use MaxPool2d with a kernel of the size that you want to reduce"),
    (("mul", "div", "sub", "rsub", "neg"),
     "scale the samples when they are read, or the weights of the layer before"),
    (("chunk", "split", "index_select"), "give each part a convolution or Linear of its own"),
    (("wrap_with_set_grad_enabled",), "freeze by requires_grad = False instead of torch.no_grad"),
)  # fmt: skip


def _remedy(name: str, module: str) -> str:
    wanted = {name.rstrip("_"), module}
    known = (remedy for names, remedy in _REMEDIES if wanted.intersection(names))
    return next(known, f"there are {', '.join(RULES)}")

"""The models that ship, in builder form.

There is no transformer: attention multiplies one activation by another, and every product of the
ops is one with a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fedtiny.engine.builder import HE, Net, Value
from fedtiny.errors import CompileError

ACTIVATIONS = ("relu", "tanh", "sigmoid")


def mlp(widths: Sequence[int], activation: str = "relu", head: str = "shared") -> Net:
    """A multi-layer perceptron.

    Args:
        widths: Features of the input, of each hidden layer, and of the output.
        activation: ``relu``, ``tanh`` or ``sigmoid``, between the layers.
        head: The group of the last layer's parameters.
    """
    if activation not in ACTIVATIONS:
        raise CompileError(f"no activation {activation!r}; there are {list(ACTIVATIONS)}")
    if len(widths) < 2 or min(widths) < 1:
        raise CompileError(f"an mlp needs two or more positive widths; got {list(widths)}")
    net = Net(inputs=widths[0])
    value = net.input
    for width in widths[1:-1]:
        value = getattr(net, activation)(net.linear(value, width))
    net.group = head
    net.linear(value, widths[-1])
    return net


def sine_mlp(activation: str = "relu") -> Net:
    """1-32-32-1: the regression net of the sine task; 1,153 parameters."""
    return mlp((1, 32, 32, 1), activation)


def digits_mlp(classes: int = 10, hidden: int = 32) -> Net:
    """64-hidden-classes over 8 x 8 pixels."""
    return mlp((64, hidden, classes))


# ---- convolutional nets ----------------------------------------------------------------------

NORMS = ("none", "group", "batch", "frozen", "tracked")
NORM_GROUPS = 4


def small_conv(
    side: int = 28, colours: int = 1, classes: int = 62, channels: Sequence[int] = (8, 16)
) -> Net:
    """3 x 3 convolutions of stride 2 with ReLU, then a linear head, for small square images."""
    net = Net((side, side, colours))
    value = net.input
    for width in channels:
        value = net.relu(net.conv(value, width, 3, stride=2))
    net.linear(value, classes)
    return net


def omniglot_conv(
    ways: int = 5, channels: int = 32, norm: str = "group", pool: bool = False
) -> Net:
    """Four 3 x 3 convolutions with ReLU over 28 x 28.

    Each halves the image: with ``pool`` by max-pooling (Vinyals et al. 2016), else by its stride
    (Nichol et al. 2018). ``norm``: none, group (of 4), batch (of each batch), frozen, or tracked
    (running statistics, as torch trains them).
    """
    net = Net((28, 28, 1))
    value = net.input
    for _ in range(4):
        value = _conv(net, value, channels, 3, 1 if pool else 2, norm)
        value = net.max_pool(net.relu(value), 2) if pool else net.relu(value)
    net.linear(value, ways)
    return net


def omniglot_slim(ways: int = 5, channels: int = 32, head: str = "fresh") -> Net:
    """Four 3 x 3 convolutions over 28 x 28 that train in 256 KiB with batches of four.

    The first has no normalisation and is pooled as it is made: its 14 x 14 output is never stored.
    The ``head`` is the group of the last layer, which starts at zero: with "fresh" every
    task learns one of its own, and only the features are shared.
    """
    net = Net((28, 28, 1))
    net.gain = HE
    value = net.max_pool(net.relu(net.conv(net.input, channels, 3, 2, 1)), 2)
    for stride in (1, 2, 2):
        value = net.relu(_conv(net, value, channels, 3, stride, "group"))
    net.group = head
    net.linear(value, ways, name="head")
    net.start["head.weight"] = np.zeros((math.prod(value.shape), ways), np.float32)
    net.start["head.bias"] = np.zeros(ways, np.float32)
    return net


def ds_cnn(classes: int = 12, channels: int = 64, blocks: int = 4, norm: str = "frozen") -> Net:
    """Depthwise-separable convolutions over 49 x 10 MFCCs (Zhang et al. 2017: DS-CNN-S)."""
    net = Net((49, 10, 1))
    value = net.relu(_conv(net, net.input, channels, (10, 4), 2, norm))
    for _ in range(blocks):
        value = net.relu(_conv(net, value, channels, 3, 1, norm, groups=channels))
        value = net.relu(_conv(net, value, channels, 1, 1, norm))
    net.linear(net.global_avg_pool(value), classes)
    return net


def har_conv(classes: int = 6, channels: Sequence[int] = (16, 32, 32), norm: str = "group") -> Net:
    """Convolutions of width 5 and stride 2 over windows of 128 x 6 samples of motion."""
    net = Net((128, 6))
    value = net.input
    for width in channels:
        value = net.relu(_conv(net, value, width, 5, 2, norm))
    net.linear(net.global_avg_pool(value), classes)
    return net


def cifar_conv(classes: int = 10, channels: Sequence[int] = (16, 32, 32)) -> Net:
    """3 x 3 convolutions with ReLU and 2 x 2 max-pooling over 32 x 32 colour pictures."""
    net = Net((32, 32, 3))
    value = net.input
    for width in channels:
        value = net.max_pool(net.relu(_conv(net, value, width, 3, 1, "none")), 2)
    net.linear(value, classes)
    return net


def resnet(
    side: int = 32, classes: int = 10, channels: Sequence[int] = (16, 32, 64), norm: str = "frozen"
) -> Net:
    """One residual block of two 3 x 3 convolutions a width; all but the first halve the image.

    He et al. 2016, for colour pictures.
    """
    net = Net((side, side, 3))
    value = net.relu(_conv(net, net.input, channels[0], 3, 1, norm))
    for index, width in enumerate(channels):
        value = _residual(net, value, width, 2 if index else 1, norm)
    net.linear(net.global_avg_pool(value), classes)
    return net


# ---- nets to prune: every weight but the norms' can be, and their statistics are tracked ------


def digits_bn(classes: int = 10, channels: Sequence[int] = (32, 64, 64)) -> Net:
    """3 x 3 convolutions over 8 x 8 pixels, pooled once; 65,824 weights."""
    net = Net((8, 8, 1))
    value = net.input
    for index, width in enumerate(channels):
        value = net.relu(_conv(net, value, width, 3, 1, "tracked"))
        value = value if index else net.max_pool(value, 2)
    net.linear(value, classes)
    return net


def omniglot_bn(classes: int = 50, channels: int = 64) -> Net:
    """`omniglot_conv` as one classifier of many characters."""
    return omniglot_conv(classes, channels, "tracked")


_VGG11 = (1, 0, 2, 0, 4, 4, 0, 8, 8, 0, 8, 8, 0)
"""Widths in units of the first, 0 for a pooling (Simonyan, Zisserman 2014, table 1, A)."""


def vgg11(width: int = 64, classes: int = 10, shape: tuple[int, int, int] = (32, 32, 3)) -> Net:
    """Eight 3 x 3 convolutions, five poolings and three linear layers, for small pictures."""
    net = Net(shape)
    value = net.input
    for units in _VGG11:
        value = (
            net.relu(_conv(net, value, units * width, 3, 1, "tracked"))
            if units
            else net.max_pool(value, 2)
        )
    for _ in range(2):
        value = net.relu(net.linear(value, 8 * width))
    net.linear(value, classes)
    return net


def resnet18(width: int = 64, classes: int = 10, shape: tuple[int, int, int] = (32, 32, 3)) -> Net:
    """Eight blocks of two 3 x 3 convolutions at four sizes, for small pictures (He et al. 2016)."""
    net = Net(shape)
    value = net.relu(_conv(net, net.input, width, 3, 1, "tracked"))
    for block in range(8):
        stride = 2 if block in (2, 4, 6) else 1
        value = _residual(net, value, width << block // 2, stride, "tracked")
    net.linear(net.global_avg_pool(value), classes)
    return net


def _residual(net: Net, x: Value, width: int, stride: int, norm: str) -> Value:
    """Two convolutions beside a shortcut, which is one of its own where the shape changes."""
    inner = net.relu(_conv(net, x, width, 3, stride, norm))
    inner = _conv(net, inner, width, 3, 1, norm)
    shortcut = x if x.shape == inner.shape else _conv(net, x, width, 1, stride, norm)
    return net.relu(net.add(inner, shortcut))


MOBILENET_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                 (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip
"""Expansion, channels, blocks and first stride (Sandler et al. 2018, table 2)."""


def mobilenet_v2(
    side: int = 96, classes: int = 10, width: float = 0.35, norm: str = "frozen",
    lite: bool = False,
) -> Net:  # fmt: skip
    """Inverted residual blocks over colour pictures (Sandler et al. 2018). ``lite``: each with a
    branch beside it, to be trained in its place by ``named:*.lite.*+biases``."""
    net = Net((side, side, 3))
    value = net.relu6(_conv(net, net.input, eighths(32 * width), 3, 2, norm))
    for expansion, channels, blocks, stride in MOBILENET_V2:
        for block in range(blocks):
            step = stride if block == 0 else 1
            value = _inverted(net, value, expansion, eighths(channels * width), 3, step, norm, lite)
    value = net.relu6(_conv(net, value, 1280, 1, 1, norm))
    net.linear(net.global_avg_pool(value), classes)
    return net


MCUNET = (
    (1, 8, 3, 1), (3, 16, 7, 2), (3, 16, 3, 1), (3, 16, 3, 1), (4, 24, 5, 2), (3, 24, 5, 1),
    (4, 40, 7, 2), (3, 40, 3, 1), (4, 48, 5, 1), (3, 48, 5, 1), (5, 96, 5, 2), (4, 96, 3, 1),
    (4, 96, 7, 1), (6, 160, 3, 1),
)  # fmt: skip
"""Expansion, channels, kernel and stride of each block."""


def mcunet(side: int = 128, classes: int = 10, norm: str = "frozen", lite: bool = False) -> Net:
    """Inverted residual blocks with kernels of 3, 5 and 7, in the manner of MCUNet (Lin et al.
    2020): 42 convolutions, 23 million multiply-adds at 128 x 128. ``lite`` as in `mobilenet_v2`."""
    net = Net((side, side, 3))
    value = net.relu6(_conv(net, net.input, 16, 3, 2, norm))
    for expansion, channels, kernel, stride in MCUNET:
        value = _inverted(net, value, expansion, channels, kernel, stride, norm, lite)
    net.linear(net.global_avg_pool(value), classes)
    return net


def _inverted(
    net: Net, x: Value, expansion: int, width: int, kernel: int, stride: int, norm: str, lite: bool
) -> Value:
    inner = x.shape[-1] * expansion
    value = net.relu6(_conv(net, x, inner, 1, 1, norm)) if expansion > 1 else x
    value = net.relu6(_conv(net, value, inner, kernel, stride, norm, groups=inner))
    value = _conv(net, value, width, 1, 1, norm)
    value = net.add(value, x) if value.shape == x.shape else value
    return _with_branch(net, value, x, stride) if lite and expansion > 1 else value


LITE_CHANNELS = 8
"""Of a group of a lite branch."""


def _with_branch(net: Net, value: Value, x: Value, stride: int) -> Value:
    """A value plus a narrow view of the block's input (Cai et al. 2020: TinyTL).

    The input is pooled where the block halves it, convolved in groups without an expansion, and
    mixed; what is kept to train it is far narrower than what the block would keep. It starts as
    nothing: the weights that mix are 0. Where the block keeps the extents so does the branch, since
    no op here would enlarge a pooled one again.
    """
    name = f"{value.name}.lite"
    reduced = net.avg_pool(x, 2, padding=_odd(x)) if stride == 2 else x
    groups = x.shape[-1] // LITE_CHANNELS
    inner = net.conv(reduced, x.shape[-1], 3, padding=1, groups=groups, name=f"{name}.groups")
    mixed = net.conv(net.relu(inner), value.shape[-1], 1, name=f"{name}.mix")
    net.start[f"{name}.mix.weight"] = np.zeros((1, 1, x.shape[-1], value.shape[-1]), np.float32)
    net.start[f"{name}.mix.bias"] = np.zeros(value.shape[-1], np.float32)
    return net.add(value, mixed)


def _odd(x: Value) -> tuple[int, int, int, int]:
    """The padding by which a 2 x 2 pooling of an odd image gives what a stride of 2 does."""
    return (0, 0, x.shape[0] % 2, x.shape[1] % 2)


def eighths(width: float) -> int:
    """The nearest multiple of eight, but not more than a tenth below the width."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def _conv(
    net: Net, x: Value, width: int, kernel: int | tuple[int, int], stride: int, norm: str,
    groups: int = 1,
) -> Value:  # fmt: skip
    """A convolution and what normalises it; its padding is half the kernel."""
    if norm not in NORMS:
        raise CompileError(f"no norm {norm!r}; there are {list(NORMS)}")
    half = kernel // 2 if isinstance(kernel, int) else "same"
    value = net.conv(x, width, kernel, stride, padding=half, groups=groups, bias=norm == "none")
    if norm == "group":
        return net.group_norm(value, NORM_GROUPS)
    if norm == "none":
        return value
    return net.batch_norm(value, frozen=norm == "frozen", tracked=norm == "tracked")


# ---- what `fedtiny zoo` shows ----------------------------------------------------------------


_BIASES = "biases+last:1"


@dataclass(frozen=True, slots=True)
class Entry:
    """A net of the zoo, by what it learns.

    ``plain`` makes it without normalisations, as int8 takes it; None if it has no such form.
    ``sparse`` is an update plan between the biases and everything.
    """

    make: Callable[[], Net]
    plain: Callable[[], Net] | None
    loss: str
    takes: str
    sparse: str = _BIASES


def _entry(make: Callable[..., Net], takes: str, sparse: str = _BIASES) -> Entry:
    return Entry(make, partial(make, norm="none"), "cross_entropy", takes, sparse)


def _quarters(biases: int, convolutions: Sequence[int]) -> str:
    """The head, some biases, and the first quarter of the inputs of some convolutions."""
    weights = ",".join(f"conv{n}.weight{{in=1/4}}" for n in convolutions)
    return f"biases:{biases}+last:1+named:{weights}"


_MOBILENET_SPARSE = _quarters(22, (37, 40, 43, 46))
"""The pointwise convolutions that expand blocks 13 to 16."""

ZOO: Mapping[str, Entry] = {
    "sine_mlp": Entry(sine_mlp, sine_mlp, "mse", "a number"),
    "digits_mlp": Entry(digits_mlp, digits_mlp, "cross_entropy", "8 x 8 pixels"),
    "har_conv": _entry(har_conv, "128 x 6 motion"),
    "omniglot_conv": _entry(omniglot_conv, "28 x 28 pixels"),
    "omniglot_slim": Entry(omniglot_slim, None, "cross_entropy", "28 x 28 pixels"),
    "ds_cnn": _entry(ds_cnn, "49 x 10 MFCCs"),
    "cifar_conv": Entry(cifar_conv, cifar_conv, "cross_entropy", "32 x 32 RGB"),
    "resnet": _entry(resnet, "32 x 32 RGB"),
    "mobilenet_v2": _entry(mobilenet_v2, "96 x 96 RGB", _MOBILENET_SPARSE),
    "mobilenet_v2_128": _entry(partial(mobilenet_v2, 128), "128 x 128 RGB", _MOBILENET_SPARSE),
    "mcunet": _entry(mcunet, "128 x 128 RGB", _quarters(22, (28, 31, 34, 37))),
}

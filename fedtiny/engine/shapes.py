"""The shapes of what the ops make, from those of their operands: one rule each.

A rule takes the shapes of the inputs (() if absent), the attributes of the op, and the shape of
the tensor that the output is to be like, which says what the inputs leave open. It gives the shape
and the element type of each output, or raises GraphError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fedtiny.engine.ir import AXES, F32, I8, I32, Region, Scalars, Window
from fedtiny.errors import GraphError

Shape = tuple[int, ...]
Made = list[tuple[Shape, str]]
Rule = Callable[[Sequence[Shape], Any, Shape], Made]

MAX_TAPS = 256
"""A code of a max-pooling has at most eight bits."""
MAX_WORD = 0xFFFF
MAX_TERMS = 1 << 15
"""Of a sum of products of int8: 255 * 127 * 2^15 and a bias of 2^30 fit into 32 bits."""


def need(condition: bool, message: str) -> None:
    """GraphError with the message unless the condition holds."""
    if not condition:
        raise GraphError(message)


# ---- element by element ----------------------------------------------------------------------


def alike(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """That of the operands, which are alike."""
    need(len(set(shapes)) == 1, f"the operands differ in shape: {list(shapes)}")
    return [(shapes[0], F32)]


def same(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """That of the first operand."""
    return [(shapes[0], F32)]


def masked(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """That of the operand, and a mask with one bit for each element."""
    return [(shapes[0], F32), (_words(shapes[0], 1), I32)]


def sloped(shapes: Sequence[Shape], attributes: Scalars, like: Shape) -> Made:
    """The same, with a slope."""
    need(0 < attributes.value < math.inf, f"a slope must be above 0; got {attributes.value}")
    return masked(shapes, attributes, like)


def unmasked(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """That of dy, which the mask fits."""
    dy, mask = shapes
    need(mask == _words(dy, 1), f"a mask of shape {mask} does not fit {dy}")
    return [(dy, F32)]


def per_channel(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """That of x; the other operands have one element for each of its channels."""
    x, *vectors = shapes
    for vector in vectors:
        need(vector == x[-1:], f"{vector} does not fit the last axis of {x}")
    return [(x, F32)]


def concat(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """The channels of both."""
    a, b = shapes
    need(a[:-1] == b[:-1], f"concat takes shapes that differ in the last axis alone; got {a}, {b}")
    return [((*a[:-1], a[-1] + b[-1]), F32)]


def channels(shapes: Sequence[Shape], first: Scalars, like: Shape) -> Made:
    """Some channels of the operand."""
    (x,) = shapes
    fits = like[:-1] == x[:-1] and first.number + like[-1] <= x[-1]
    need(fits, f"there are no channels {first.number} to {first.number + like[-1]} of {x}")
    return [(like, F32)]


def take(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """The listed channels of x."""
    x, index = shapes
    fits = len(index) == 1 and index[0] <= x[-1]
    need(fits, f"a list {index} of channels does not fit the last axis of {x}")
    return [((*x[:-1], index[0]), F32)]


def merge(shapes: Sequence[Shape], axis: Scalars, like: Shape) -> Made:
    """That of the weight, some of whose channels stand in the part."""
    w, part, index = shapes
    place = len(w) - (2 if axis.number == AXES["in"] else 1)
    known = axis.number in AXES.values() and place >= 0
    need(known, f"{w} has no axis {axis.number} of channels")
    fits = part == (*w[:place], *index, *w[place + 1 :]) and part[place] <= w[place]
    need(fits, f"a part {part} of the channels {index} does not fit axis {place} of {w}")
    return [(w, F32)]


def crop(shapes: Sequence[Shape], region: Region, like: Shape) -> Made:
    """A part of an image."""
    return [(_part(shapes[0], region), F32)]


def paste(shapes: Sequence[Shape], region: Region, like: Shape) -> Made:
    """That of the base, in a region of which the patch stands; without a base as it is told."""
    base, patch = shapes
    whole = base or like
    need(patch in ((), _part(whole, region)), f"{patch} does not fit into {region} of {whole}")
    return [(whole, F32)]


def _part(x: Shape, region: Region) -> Shape:
    fits = len(x) == 4 and min(region.words) >= 0 and min(region.height, region.width) >= 1
    fits = fits and region.bottom <= x[1] and region.right <= x[2]
    need(fits, f"there is no {region} of an image in {x}")
    return (x[0], region.height, region.width, x[3])


def reshape(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """As it is told."""
    fits = math.prod(shapes[0]) == math.prod(like) and shapes[0][0] == like[0]
    need(fits, f"a sample of shape {shapes[0][1:]} cannot become {like[1:]}")
    return [(like, F32)]


def zeros(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """As it is told, else a scalar."""
    return [(like or (1,), F32)]


def scalar(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """One float."""
    return [((1,), F32)]


def nothing(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """What it makes stands where an operand stood."""
    return []


def _words(shape: Shape, bits: int) -> Shape:
    """Of a tensor that holds so many bits for each element."""
    return shape[0], -(-math.prod(shape[1:]) * bits // 32)


# ---- linear layers ---------------------------------------------------------------------------


def linear(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """[B, O] of x[B, ...], whose sample is taken flat."""
    x, w, b = shapes
    row = math.prod(x[1:])
    need(
        len(x) >= 2 and len(w) == 2 and row == w[0],
        f"linear takes x[batch, in] and weight[in, out]; got {x} and {w}",
    )
    need(b in ((), w[1:]), f"linear bias {b} is not ({w[1]},)")
    return [((x[0], w[1]), F32)]


def linear_dx(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """That of x."""
    dy, w = shapes
    like = like or (dy[0], w[0])
    fits = dy[1:] == w[1:] and (like[0], math.prod(like[1:])) == (dy[0], w[0])
    need(fits, f"no linear layer leads from {like} by {w} to {dy}")
    return [(like, F32)]


# ---- windows ---------------------------------------------------------------------------------


def _extents(x: Shape, kernel: Sequence[int], window: Window) -> tuple[int, int]:
    """Height and width of what a window of that kernel gives."""
    height, width = (1, 1, *x[1:-1])[-2:]
    top, left, bottom, right = window.padding
    sizes = (height + top + bottom, width + left + right)
    what = f"a window of {tuple(kernel)}, stride {window.stride}, padding {window.padding}"
    need(2 <= len(x) <= 4, f"{what} slides over [batch, (height,) width, channels]; got {x}")
    need(max(window.words) <= MAX_WORD and min(window.stride) >= 1, f"{what} is no window")
    fits = all(0 <= pad < kernel[i % 2] for i, pad in enumerate(window.padding))
    need(fits, f"{what}: pads must be smaller than the kernel")
    fits = all(size >= k for size, k in zip(sizes, kernel, strict=True))
    need(fits, f"{what} does not fit into {height} x {width}; take a smaller kernel")
    oh, ow = ((n - k) // s + 1 for n, k, s in zip(sizes, kernel, window.stride, strict=True))
    return oh, ow


def _image(x: Shape, extents: tuple[int, int], width: int) -> Shape:
    """With as many axes as x has."""
    need(math.prod(extents[: 4 - len(x)]) == 1, f"{x} cannot hold an image of {extents}")
    return (x[0], *extents[4 - len(x) :], width)


def _check_groups(x: Shape, w: Shape, groups: int) -> None:
    fits = len(w) in (3, 4) and groups >= 1 and w[-2] * groups == x[-1] and not w[-1] % groups
    need(fits, f"a convolution of {groups} groups over {x} cannot have the weight {w}")


def _convolved(x: Shape, w: Shape, window: Window) -> Shape:
    _check_groups(x, w, window.groups)
    return _image(x, _extents(x, (1, *w[:-2])[-2:], window), w[-1])


def conv(shapes: Sequence[Shape], window: Window, like: Shape) -> Made:
    """The image that a convolution makes."""
    x, w, b = shapes
    need(window.kernel == (0, 0), f"a convolution's kernel is its weight's, not {window.kernel}")
    need(b in ((), w[-1:]), f"convolution bias {b} is not ({w[-1]},)")
    return [(_convolved(x, w, window), F32)]


def conv_pool(shapes: Sequence[Shape], window: Window, like: Shape) -> Made:
    """The image that a pooled convolution makes, and its codes."""
    x, w, b = shapes
    need(b in ((), w[-1:]), f"convolution bias {b} is not ({w[-1]},)")
    return max_pool([_convolved(x, w, window)], pooling_of(window), like)


def pooling_of(window: Window) -> Window:
    """The window of the pooling that is fused to a convolution."""
    return Window(stride=window.kernel, kernel=window.kernel)


# ---- sparse weights --------------------------------------------------------------------------


def sparse_conv(shapes: Sequence[Shape], window: Window, like: Shape) -> Made:
    """What a linear layer or a convolution with that weight makes."""
    need(window.groups == 1, f"a sparse convolution has one group; got {window.groups}")
    return _dense(shapes, window, like)


def sparse_conv_dx(shapes: Sequence[Shape], window: Window, like: Shape) -> Made:
    """That of x."""
    return (linear_dx if len(shapes[1]) == 2 else conv_dx)(shapes, window, like)


# ---- poolings --------------------------------------------------------------------------------


def _pooled(x: Shape, window: Window) -> Shape:
    need(window.groups == 0, f"a pooling has no groups; got {window.groups}")
    need(min(window.kernel) >= 1, f"{window.kernel} is no kernel of a pooling")
    return _image(x, _extents(x, window.kernel, window), x[-1])


def max_pool(shapes: Sequence[Shape], window: Window, like: Shape) -> Made:
    """The image that a pooling makes, and its codes."""
    need(window.taps <= MAX_TAPS, f"a max-pooling has up to {MAX_TAPS} taps; got {window.taps}")
    y = _pooled(shapes[0], window)
    return [(y, F32), (_words(y, window.code_bits), I32)]


def avg_pool(shapes: Sequence[Shape], window: Window, like: Shape) -> Made:
    """The image that a pooling makes."""
    return [(_pooled(shapes[0], window), F32)]


def conv_dx(shapes: Sequence[Shape], window: Window, like: Shape) -> Made:
    """That of x."""
    dy, w = shapes
    need(_convolved(like, w, window) == dy, f"no convolution leads from {like} by {w} to {dy}")
    return [(like, F32)]


def max_pool_dx(shapes: Sequence[Shape], window: Window, like: Shape) -> Made:
    """That of x."""
    need(max_pool([like], window, ()) == [(shapes[0], F32), (shapes[1], I32)],
         f"no max-pooling leads from {like} to {shapes[0]} with codes {shapes[1]}")  # fmt: skip
    return [(like, F32)]


def avg_pool_dx(shapes: Sequence[Shape], window: Window, like: Shape) -> Made:
    """That of x."""
    need(_pooled(like, window) == shapes[0], f"no pooling leads from {like} to {shapes[0]}")
    return [(like, F32)]


# ---- int8 ------------------------------------------------------------------------------------


def conv8(shapes: Sequence[Shape], window: Window, like: Shape) -> Made:
    """What a convolution makes, or a linear layer."""
    terms = math.prod(shapes[1][:-1])
    need(terms <= MAX_TERMS, f"an int8 sum has at most {MAX_TERMS:,} products; got {terms:,}")
    ((shape, _),) = _dense(shapes, window, like)
    return [(shape, I8)]


def _dense(shapes: Sequence[Shape], window: Window, like: Shape) -> Made:
    if len(shapes[1]) != 2:
        return conv(shapes, window, like)
    need(window == Window(groups=1), f"a linear layer has no window; got {window}")
    return linear(shapes, window, like)


def add8(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """That of the operands, which are alike."""
    return _integers(alike(shapes, attributes, like))


def max_pool8(shapes: Sequence[Shape], window: Window, like: Shape) -> Made:
    """The image that a pooling makes, and its codes."""
    return _integers(max_pool(shapes, window, like))


def avg_pool8(shapes: Sequence[Shape], window: Window, like: Shape) -> Made:
    """The image that a pooling makes."""
    return _integers(avg_pool(shapes, window, like))


def mask8(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """A mask with one bit for each element."""
    return [(_words(shapes[0], 1), I32)]


def _integers(made: Made) -> Made:
    """The first of them as int8."""
    return [(made[0][0], I8), *made[1:]]


# ---- normalisations --------------------------------------------------------------------------


def _check_eps(attributes: Scalars) -> None:
    need(0 < attributes.value < math.inf, f"eps must be above 0; got {attributes.value}")


def frozen_normalize(shapes: Sequence[Shape], eps: Scalars, like: Shape) -> Made:
    """That of x."""
    _check_eps(eps)
    return per_channel(shapes, eps, like)


def batch_normalize(shapes: Sequence[Shape], eps: Scalars, like: Shape) -> Made:
    """That of x, and one standard deviation for each channel."""
    _check_eps(eps)
    return [(shapes[0], F32), (shapes[0][-1:], F32)]


def tracked_normalize(shapes: Sequence[Shape], attributes: Scalars, like: Shape) -> Made:
    """The same, with running statistics of each channel and their momentum in thousandths."""
    per_channel(shapes, attributes, like)
    momentum = attributes.number
    need(0 < momentum <= 1000, f"a momentum is 1 to 1000 thousandths; got {momentum}")
    return batch_normalize(shapes, attributes, like)


def group_normalize(shapes: Sequence[Shape], attributes: Scalars, like: Shape) -> Made:
    """That of x, and one standard deviation for each group of a sample."""
    x, groups = shapes[0], attributes.number
    _check_eps(attributes)
    fits = len(x) >= 2 and 1 <= groups <= MAX_WORD and x[-1] % groups == 0
    need(fits, f"{groups} groups do not divide the channels of {x}")
    return [(x, F32), ((x[0], groups), F32)]


# ---- losses ----------------------------------------------------------------------------------


def loss_alike(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """The gradient of the prediction, which the target is like, and the loss."""
    return [*alike(shapes, attributes, like), ((1,), F32)]


def loss_by_distribution(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """The same, of logits and the probabilities of the classes."""
    need(len(shapes[0]) == 2, f"cross-entropy takes logits[batch, classes]; got {shapes[0]}")
    return loss_alike(shapes, attributes, like)


def loss_by_class(shapes: Sequence[Shape], attributes: Any, like: Shape) -> Made:
    """The gradient of the logits, and the loss."""
    z, label, *weights = shapes
    fits = len(z) == 2 and label == z[:1] and all(w == z[1:] for w in weights)
    need(
        fits,
        f"cross-entropy takes logits[batch, classes], labels[batch] and weights[classes]; got "
        f"{list(shapes)}",
    )
    return [(z, F32), ((1,), F32)]

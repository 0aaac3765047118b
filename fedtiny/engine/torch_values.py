"""The values and parameters of a torch module while it becomes a net.

A value of the module is a value of the builder and its *places*: for each element, where the device
stores it. torch itself carries its views out on the places, so that a flatten, a squeeze or a
transposition costs the device nothing, and a linear layer behind it takes its weights in the stored
order. What would have to move elements in memory is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from fedtiny.engine.builder import Net, Value
from fedtiny.errors import GraphError
from fedtiny.layout import FROZEN

BATCH = 2
"""Of the export: an operation that mixes the samples of a batch shows with two of them."""
NO_PADDING = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Placed:
    """A value: ``places[b, ...]`` is where the device stores each element of sample b.

    ``padding`` is that of a torch padding which the next convolution takes over (top, left, bottom,
    right); ``memory`` is one object for all views of one tensor of torch.
    """

    value: Value
    places: Tensor
    padding: tuple[int, int, int, int] = NO_PADDING
    memory: object = field(default_factory=object)


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter or buffer of the module. ``own`` is False of what is computed from others."""

    fqn: str
    tensor: Tensor
    group: str
    own: bool = True

    @property
    def owner(self) -> str:
        """The path of the module that it belongs to: what the builder calls the layer."""
        path, _, last = f".{self.fqn}".rpartition(".")
        return (path[1:] or "module") if last in _LAST_NAMES else self.fqn


_LAST_NAMES = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, eq=False)
class Held:
    """A parameter as the device holds it: its element i is element ``order[i]`` of the module's
    tensor ``fqn``, which is "" when the module has none."""

    fqn: str
    order: Tensor
    values: Tensor


@dataclass(eq=False)
class Conversion:
    """A net under construction from the nodes of an exported graph."""

    net: Net
    fold: bool
    values: dict[Node, Placed | Weight]
    node: Node
    held: dict[str, Held] = field(default_factory=dict)
    folded: set[Node] = field(default_factory=set)

    def refuse(self, why: str) -> GraphError:
        """The error of the node at hand."""
        return GraphError(f"{module_path(self.node)}: {op_name(self.node)} {why}")

    # ---- values ----

    def plain(self, x: object) -> Value:
        """The builder's value of an operand, in whatever order it is stored."""
        if isinstance(x, Weight):
            raise self.refuse(
                f"computes with {x.fqn}; parameters and buffers can only be the weights of linear, "
                "convolution and normalisation layers"
            )
        if not isinstance(x, Placed):
            raise self.refuse(
                f"takes the number {x}; scale the samples when they are read, or the weights of "
                "the layer before"
            )
        if x.padding != NO_PADDING:
            raise self.refuse("reads padded values; zero padding must stand before a convolution")
        return x.value

    def stored(self, x: Placed, order: Sequence[int]) -> Value:
        """The value, if its axes (of one sample) are stored in this order; in that shape."""
        sample = x.places[0].permute(*order)
        if not torch.equal(sample.flatten(), torch.arange(sample.numel())):
            wanted = (0, *(axis + 1 for axis in order))
            raise self.refuse(
                f"needs its input {tuple(x.places.shape)} stored in the order of the axes "
                f"{wanted}, and it is stored otherwise; leave out the permute or reshape before "
                "it, or give each part a layer of its own"
            )
        return self.shaped(self.plain(x), tuple(sample.shape))

    def channels_last(self, x: Placed) -> Value:
        """The value as the image that convolutions, pools and norms take."""
        return self.stored(x, channels_last(x.places.dim() - 1))

    def shaped(self, value: Value, shape: tuple[int, ...]) -> Value:
        """The value in that shape."""
        return value if value.shape == shape else self.net.reshape(value, shape)

    # ---- parameters ----

    def hold(
        self, name: str, weight: Weight, arrange: Callable[[Tensor], Tensor] = lambda w: w
    ) -> None:
        """Note which of the module's values the parameter of that name starts from."""
        index = torch.arange(weight.tensor.numel()).view(weight.tensor.shape)
        order = arrange(index).contiguous()
        values = weight.tensor.flatten()[order].float()
        if not values.isfinite().all():
            raise self.refuse(f"holds values in {weight.fqn} that are not finite in float32")
        made = Held(weight.fqn if weight.own else "", order, values)
        known = self.held.setdefault(name, made)
        if known.fqn != made.fqn or not torch.equal(known.order, made.order):
            raise self.refuse(
                f"uses {weight.fqn} in another order, or under the name of another parameter; give "
                "the layer a weight of its own"
            )

    def _hold_constant(self, name: str, value: float, channels: int) -> None:
        """A parameter that the module does not have, and that never trains."""
        self.held[name] = Held("", torch.arange(channels), torch.full((channels,), value))

    def layer(
        self,
        make: Callable[[bool, str], Value],
        weight: Weight,
        bias: Weight | None,
        arrange: Callable[[Tensor], Tensor],
    ) -> Value:
        """A layer with a weight and perhaps a bias, which is an op of its own if its group or its
        module is another."""
        weight, bias = self._folded(weight, bias)
        together = bias is not None and (bias.owner, bias.group) == (weight.owner, weight.group)
        self.net.group = weight.group
        value = make(together, weight.owner)
        self.hold(f"{weight.owner}.weight", weight, arrange)
        if bias is None:
            return value
        self.net.group = bias.group
        self.hold(f"{bias.owner}.bias", bias)
        return value if together else self.net.bias(value, name=bias.owner)

    def _folded(self, weight: Weight, bias: Weight | None) -> tuple[Weight, Weight | None]:
        """Weight and bias with the frozen batch normalisation behind them folded in."""
        norm = next(iter(self.node.users)) if len(self.node.users) == 1 else self.node
        if not self.fold or op_name(norm) != "batch_norm" or norm.args[5] or self._uses(weight) > 1:
            return weight, bias
        self.folded.add(norm)
        gain, shift, mean, var = map(self._tensor, norm.args[1:5], (1.0, 0.0, 0.0, 1.0))
        scale = gain * torch.rsqrt(var + cast("float", norm.args[7]))
        moved = ((bias.tensor.double() if bias else 0.0) - mean) * scale + shift
        wide = scale.view(-1, *[1] * (weight.tensor.dim() - 1))
        return (
            Weight(weight.fqn, weight.tensor.double() * wide, weight.group, own=False),
            Weight(f"{weight.owner}.bias", moved, weight.group, own=False),
        )

    def _tensor(self, argument: object, default: float) -> Tensor:
        """A parameter that a node names, in float64; the default where it names none."""
        known = self.values[argument] if isinstance(argument, Node) else None
        return known.tensor.double() if isinstance(known, Weight) else torch.tensor(default)

    def _uses(self, weight: Weight) -> int:
        """How many operations of the module read it."""
        known = self.values.items()
        return sum(len(n.users) for n, v in known if isinstance(v, Weight) and v.fqn == weight.fqn)

    def affine(
        self,
        name: str,
        weight: Weight | None,
        bias: Weight | None,
        channels: int,
        arrange: Callable[[Tensor], Tensor] = lambda w: w,
    ) -> None:
        """The scale and the shift of a normalisation, which the device always has."""
        if weight is None and bias is None:
            self.net.group = FROZEN
            self._hold_constant(f"{name}.weight", 1.0, channels)
            return self._hold_constant(f"{name}.bias", 0.0, channels)
        if weight is None or bias is None or weight.group != bias.group:
            raise self.refuse("must have both a weight and a bias, or neither, and train both")
        self.net.group = weight.group
        self.hold(f"{name}.weight", weight, arrange)
        self.hold(f"{name}.bias", bias, arrange)


def made(value: Value, order: Sequence[int]) -> Placed:
    """A fresh value, stored in that order of the axes that torch gives it."""
    index = torch.arange(BATCH * math.prod(value.shape)).view(BATCH, *value.shape)
    axes = [order.index(axis) + 1 for axis in range(len(order))]
    return Placed(value, index.permute(0, *axes).contiguous())


def module_path(node: Node) -> str:
    """The module in which a node stands: its path and type."""
    path, kind = _module(node)[0], module_type(node)
    return f"{path} ({kind})" if path else kind


def module_type(node: Node) -> str:
    """The type of the module in which a node stands."""
    return _module(node)[1].rpartition(".")[2]


def _module(node: Node) -> tuple[str, str]:
    """The innermost module: its path, and its type with its home."""
    stack = node.meta.get("nn_module_stack") or {"": ("", "the model")}
    path, kind = list(stack.values())[-1]
    return path, str(kind)


def op_name(node: Node) -> str:
    """The name of the operation, such as ``conv2d``."""
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", packet))


def channels_last(rank: int) -> tuple[int, ...]:
    """The order in which the device stores an image that torch has channels first."""
    return (*range(1, rank), 0)

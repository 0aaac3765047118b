"""Normalisations by stored statistics go into the layers before them: the net that int8 takes.

A frozen or tracked batch normalisation behind a convolution or a linear layer multiplies each
channel by a number and adds another, and so does the affine layer behind it. The weights take the
one, the bias takes the other. The folded net is that of a layer with a bias and no normalisation:
names and order of its parameters are those of the zoo's ``norm="none"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedtiny.engine.ir import PARAMETER, Graph, Op, Scalars, Tensor, verify
from fedtiny.errors import CompileError
from fedtiny.layout import Layout, Parameter

if TYPE_CHECKING:
    from fedtiny.tensors import Buffer, Float32

_LAYERS = ("conv", "linear")
_STORED = ("frozen_normalize", "tracked_normalize")
_MEASURED = {
    "batch_normalize": "the statistics of the batch at hand",
    "group_normalize": "the statistics of each sample",
}


class Unfolded(Protocol):
    """A net that may have normalisations."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    def graph(self, batch: int) -> Graph:
        """The forward graph at a batch size."""


@dataclass(frozen=True)
class Folded:
    """A net without its normalisations, which starts from the values of ``start``."""

    net: Unfolded
    start: Mapping[str, Float32] = field(repr=False, compare=False)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.net.sample_shape

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """The order in which a device stores a sample's axes."""
        return tuple(getattr(self.net, "axes", ()))

    def graph(self, batch: int) -> Graph:
        """The forward graph at a batch size."""
        return replace(_folded_graph(self.net.graph(batch)), start=self.start)


def folded(net: Unfolded, vector: Buffer) -> tuple[Folded, Float32]:
    """The net without its normalisations, and its vector: the same predictions, up to rounding.

    Args:
        net: A builder net with frozen or tracked batch normalisations.
        vector: Its averaged vector.

    Raises:
        CompileError: A normalisation is by other than stored statistics, or stands elsewhere than
            between a layer and its affine.
    """
    graph = net.graph(1)
    values = graph.layout.unflatten(np.asarray(vector, np.float32))
    for norm in _norms(graph):
        values |= _folded_values(norm, values)
    layout = _folded_graph(graph).layout
    start = {p.name: np.ascontiguousarray(values[p.name], np.float32) for p in layout.parameters}
    flat = [start[p.name].ravel() for p in layout.parameters]
    return Folded(net, start), np.concatenate(flat)


# ---- what is folded --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Norm:
    """A layer, the normalisation of its output, and the affine layer behind that."""

    layer: Op
    normalize: Op
    affine: Op

    @property
    def weight(self) -> str:
        """Of the layer."""
        return self.layer.inputs[1]

    @property
    def bias(self) -> str:
        """Of the folded layer."""
        return self.layer.inputs[2] or f"{self.weight.removesuffix('.weight')}.bias"

    @property
    def gone(self) -> tuple[str, ...]:
        """The parameters that the folded net does not have."""
        return (*self.normalize.inputs[1:], *self.affine.inputs[1:])


def _norms(graph: Graph) -> Iterator[_Norm]:
    makers = {op.outputs[0]: op for op in graph.ops}
    readers: dict[str, list[Op]] = {}
    for op in graph.ops:
        for name in op.inputs:
            readers.setdefault(name, []).append(op)
    for op in graph.ops:
        if measured := _MEASURED.get(op.kind):
            raise CompileError(
                f"{op.outputs[0]} normalises by {measured}, which no weight can hold; train the "
                "net with frozen or tracked batch normalisations, or without any"
            )
        if op.kind in _STORED:
            yield _norm(op, makers, readers)


def _norm(op: Op, makers: Mapping[str, Op], readers: Mapping[str, list[Op]]) -> _Norm:
    layer, behind = makers.get(op.inputs[0]), readers.get(op.outputs[0], [])
    if layer is None or layer.kind not in _LAYERS or readers[op.inputs[0]] != [op]:
        raise CompileError(
            f"{op.outputs[0]} normalises {op.inputs[0]}, which is no convolution or linear layer "
            "that it alone reads; move it behind its layer, or leave it out"
        )
    if [reader.kind for reader in behind] != ["affine"]:
        raise CompileError(
            f"{op.outputs[0]} is read by {[reader.kind for reader in behind]}; only a "
            "normalisation with one affine layer behind it can be folded"
        )
    norm = _Norm(layer, op, behind[0])
    shared = [n for n in (norm.weight, *norm.gone) if len(readers[n]) > 1]
    if shared:
        raise CompileError(
            f"several layers use {shared[0]}, and each normalises in its own way; give each "
            "parameters of its own"
        )
    return norm


def _folded_values(norm: _Norm, values: Mapping[str, Float32]) -> dict[str, Float32]:
    """The weight and the bias of the folded layer, by way of float64."""
    mean, variance, gain, shift = (values[name].astype(np.float64) for name in norm.gone)
    assert isinstance(norm.normalize.attributes, Scalars)
    slope = gain / np.sqrt(variance + norm.normalize.attributes.value)
    bias = values[norm.layer.inputs[2]] if norm.layer.inputs[2] else 0.0
    return {
        norm.weight: (values[norm.weight] * slope).astype(np.float32),
        norm.bias: ((bias - mean) * slope + shift).astype(np.float32),
    }


# ---- the graph -------------------------------------------------------------------------------


def _folded_graph(graph: Graph) -> Graph:
    while norm := next(_norms(graph), None):
        graph = _without(graph, norm)
    return verify(graph)


def _without(graph: Graph, norm: _Norm) -> Graph:
    """The graph in which the layer's output stands where that of its affine layer stood."""
    layer = replace(norm.layer, inputs=(*norm.layer.inputs[:2], norm.bias))
    old, new = norm.affine.outputs[0], layer.outputs[0]
    ops = tuple(
        layer if op is norm.layer else _renamed(op, old, new) for op in graph.ops
        if op is not norm.normalize and op is not norm.affine
    )  # fmt: skip
    layout = Layout.of(_parameters(graph.layout, norm))
    tensors = {p.name: Tensor(p.name, p.shape, home=PARAMETER) for p in layout.parameters}
    dropped = {*norm.gone, *norm.normalize.outputs, *norm.affine.outputs}
    initial = {name: how for name, how in graph.initial.items() if name not in dropped}
    initial.setdefault(norm.bias, ("constant", 0.0))
    return replace(
        graph, ops=ops, n_forward=len(ops), layout=layout, initial=initial,
        tensors={n: t for n, t in graph.tensors.items() if n not in dropped} | tensors,
        output=new if graph.output == old else graph.output,
    )  # fmt: skip


def _renamed(op: Op, old: str, new: str) -> Op:
    return replace(op, inputs=tuple(new if name == old else name for name in op.inputs))


def _parameters(layout: Layout, norm: _Norm) -> Iterator[Parameter]:
    """Those of the folded net: a new bias stands behind its weight."""
    for p in layout.parameters:
        if p.name not in norm.gone:
            yield p
        if p.name == norm.weight and not norm.layer.inputs[2]:
            yield Parameter(norm.bias, p.shape[-1:], p.group)

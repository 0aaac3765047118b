"""Pooling before anything else, so that the largest tensors of an image net are never stored.

Two rewrites of a forward graph. The largest of some activated values is the activated largest one,
where the activation never falls: it moves behind the pooling, over fewer elements. And a
convolution of which only pooled values are used keeps nothing else. Neither makes the peak of a
training graph higher: what they keep for the way back is what was kept before, or its pooled part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fedtiny.engine.ir import Graph, Op, Window, verify

_MONOTONE = ("relu", "relu6", "leaky_relu")
_NO_PADDING = (0, 0, 0, 0)


def fuse(graph: Graph) -> Graph:
    """The forward graph with activations behind max-poolings, and these in the convolutions.

    Losses keep every bit. So do the parameters, but for a convolution that sends no gradient on:
    there the terms of the weights' gradient are added window by window instead of row by row.
    """
    while exchange := next(_exchangeable(graph), None):
        graph = _exchanged(graph, *exchange)
    while fusion := next(_fusible(graph), None):
        graph = _fused(graph, *fusion)
    return verify(graph)


def _pooled(graph: Graph, kinds: tuple[str, ...]) -> Iterator[tuple[Op, Op]]:
    """The ops of these kinds whose value one max-pooling reads and nobody else."""
    readers: dict[str, list[Op]] = {}
    for op in graph.ops:
        for name in op.inputs:
            readers.setdefault(name, []).append(op)
    for op in graph.ops:
        found = readers.get(op.outputs[0], [])
        is_single = len(found) == 1 and op.outputs[0] != graph.output
        if op.kind in kinds and is_single and found[0].kind == "max_pool":
            yield op, found[0]


def _exchangeable(graph: Graph) -> Iterator[tuple[Op, Op]]:
    """Activations and their poolings. Where windows overlap, the gradients of one element are added
    before a slope is applied or after it, which are different sums."""
    for activation, pool in _pooled(graph, _MONOTONE):
        window = pool.attributes
        assert isinstance(window, Window)
        overlap = any(s < k for s, k in zip(window.stride, window.kernel, strict=True))
        shrinks = graph.tensors[pool.outputs[0]].size <= graph.tensors[pool.inputs[0]].size
        if shrinks and not (overlap and activation.kind == "leaky_relu"):
            yield activation, pool


def _exchanged(graph: Graph, activation: Op, pool: Op) -> Graph:
    before, after = pool.outputs[0], activation.outputs[0]
    first = replace(pool, inputs=activation.inputs)
    second = replace(activation, inputs=(before,))
    shape = graph.tensors[before].shape
    tensors = {**graph.tensors, after: replace(graph.tensors[after], shape=shape)}
    ops: list[Op] = []
    for op in graph.ops:
        renamed = tuple(after if name == before else name for name in op.inputs)
        if op is not pool:
            ops += [first, second] if op is activation else [replace(op, inputs=renamed)]
    output = after if graph.output == before else graph.output
    return _with_ops(replace(graph, tensors=tensors, output=output), ops)


def _fusible(graph: Graph) -> Iterator[tuple[Op, Op]]:
    """Convolutions and their poolings, which must lay the windows side by side."""
    for convolution, pool in _pooled(graph, ("conv",)):
        window = pool.attributes
        assert isinstance(window, Window)
        if window.stride == window.kernel and window.padding == _NO_PADDING:
            yield convolution, pool


def _fused(graph: Graph, convolution: Op, pool: Op) -> Graph:
    assert isinstance(convolution.attributes, Window)
    assert isinstance(pool.attributes, Window)
    window = replace(convolution.attributes, kernel=pool.attributes.kernel)
    both = Op("conv_pool", convolution.inputs, pool.outputs, attributes=window)
    tensors = {n: t for n, t in graph.tensors.items() if n != convolution.outputs[0]}
    ops = [both if op is convolution else op for op in graph.ops if op is not pool]
    return _with_ops(replace(graph, tensors=tensors), ops)


def _with_ops(graph: Graph, ops: list[Op]) -> Graph:
    return replace(graph, ops=tuple(ops), n_forward=len(ops))

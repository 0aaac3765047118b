"""Where a window's taps fall: which outputs read which inputs by each tap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedtiny.engine.ir import Window
from fedtiny.engine.kernels.sums import Array

Slices = tuple[slice, slice, slice]


def as_image(x: Array) -> Array:
    """[B,H,W,C] of [B,L,C] or [B,C]; shares the memory."""
    return x.reshape(x.shape[0], *[1] * (4 - x.ndim), *x.shape[1:])


def as_kernel(w: Array) -> Array:
    """[kh,kw,I,O] of [k,I,O]; shares the memory."""
    return w.reshape(*[1] * (4 - w.ndim), *w.shape)


@dataclass(frozen=True, slots=True)
class Tap:
    """Tap ``index`` = (row, column) of a window: output ``outputs`` reads input ``inputs`` by it,
    place for place. Outputs for which it falls outside the image are left out."""

    index: tuple[int, int]
    outputs: Slices
    inputs: Slices


def taps(kernel: tuple[int, ...], window: Window, x: Array, y: Array) -> Iterator[Tap]:
    """The taps in ascending order, over images x and y."""
    top, left, _, _ = window.padding
    for ky in range(kernel[0]):
        rows = _reach(ky - top, window.stride[0], x.shape[1], y.shape[1])
        for kx in range(kernel[1]):
            columns = _reach(kx - left, window.stride[1], x.shape[2], y.shape[2])
            outputs, inputs = zip(rows, columns, strict=True)
            yield Tap((ky, kx), (slice(None), *outputs), (slice(None), *inputs))


def _reach(offset: int, stride: int, inputs: int, outputs: int) -> tuple[slice, slice]:
    """The outputs o with 0 <= o * stride + offset < inputs, and these inputs."""
    first = max(0, -(offset // stride))
    last = max(first, min(outputs, (inputs - 1 - offset) // stride + 1))
    start = first * stride + offset
    return slice(first, last), slice(start, start + (last - first) * stride, stride)

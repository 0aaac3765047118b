"""The first layers of an image net, patch by patch, so that their large tensors are never whole.

A stage ends in a tensor through which all that follows sees the image. `patched` cuts that tensor
into tiles and makes each from the part of the image that it sees: the tile and a halo around it,
which neighbours make again. Zeros pad a patch only where it touches the border of the image, so
that each element is the same sum of the same terms: every bit of the output stays. The layers of a
stage look at a window of places, or at one place; nothing else can be cut.

Training is exact too. The shares of the patches in the gradient of a weight are summed as those of
a layer that is used several times, and `remade` runs a patch again for its way back, so that one
patch at a time is kept (Lin et al. 2021 cut inference alone).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from fedtiny.engine.ir import (
    ARENA,
    INPUT,
    PARAMETER,
    Graph,
    Op,
    Region,
    Tensor,
    Window,
    fresh,
    verify,
)  # fmt: skip
from fedtiny.engine.liveness import lifetimes, live_bytes
from fedtiny.engine.ops import macs, produce
from fedtiny.engine.rewriting import bufferable, buffered, maskable, masked, run_again
from fedtiny.errors import CompileError

AUTO = "auto"
TILES = (2, 3, 4, 5, 6)
"""The numbers of tiles along each side that ``auto`` tries."""
MOST_WORK = 3
"""By how much the halos may multiply the multiply-adds of a prediction under ``auto``."""

_WINDOWED = ("conv", "conv_pool", "max_pool", "avg_pool")
_PLACEWISE = (
    "relu", "relu6", "leaky_relu", "hardswish", "tanh", "sigmoid", "softmax", "add", "concat",
    "bias", "affine", "frozen_normalize",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stage:
    """The tensor in which a stage of patches ends, and the tiles along each side of it."""

    end: str
    tiles: int


def stage_of(graph: Graph) -> Stage | None:
    """That of a graph in which one was cut."""
    ends = [op.outputs[0] for op in graph.ops[: graph.n_forward] if op.kind == "paste"]
    return Stage(ends[-1], math.isqrt(len(ends))) if ends else None


def stage_ends(graph: Graph) -> tuple[str, ...]:
    """The tensors at which a stage of the forward graph may end, in the order of the ops."""
    if len(graph.tensors[graph.input].shape) != 4:
        return ()
    return tuple(op.outputs[0] for op in graph.ops[: graph.n_forward] if _is_end(graph, op))


def _is_end(graph: Graph, last: Op) -> bool:
    """Whether all that follows sees the image through this op alone."""
    end = last.outputs[0]
    stage = _stage(graph, end)
    # An activation runs in one op with what it clips, if that is to be int8.
    clipped = graph.tensors[graph.input].scale and not graph.tensors[end].scale
    if clipped or not all(op.kind in _WINDOWED + _PLACEWISE for op in stage):
        return False
    inner = {name for op in stage for name in op.outputs} - {end}
    seen = {name for op in _behind(graph, stage) for name in op.inputs} | {graph.output}
    height, width = graph.tensors[end].shape[1:3]
    return inner.isdisjoint(seen) and min(height, width) > 1 and end != graph.output


def _stage(graph: Graph, end: str) -> list[Op]:
    """The forward ops that a tensor depends on, in their order."""
    needed, ops = {end}, list[Op]()
    for op in reversed(graph.ops[: graph.n_forward]):
        if needed.intersection(op.outputs):
            needed.update(op.inputs)
            ops.append(op)
    return ops[::-1]


def _behind(graph: Graph, stage: Sequence[Op]) -> list[Op]:
    """The other ops."""
    made = {op.outputs[0] for op in stage}
    return [op for op in graph.ops if made.isdisjoint(op.outputs)]


# ---- the rewrite -----------------------------------------------------------------------------


def patched(graph: Graph, end: str, tiles: int) -> Graph:
    """The forward graph whose ops up to ``end`` run for ``tiles`` x ``tiles`` patches in turn.

    Raises CompileError when no stage ends there, or it has fewer rows or columns than tiles.
    """
    ends = stage_ends(graph)
    if end not in ends:
        raise CompileError(
            f"no stage of patches ends at {end!r}; one may end at {list(ends)}: behind "
            "convolutions, poolings and what looks at one place, where no shortcut leads past"
        )
    _, height, width, _ = graph.tensors[end].shape
    if not 2 <= tiles <= min(height, width):
        raise CompileError(
            f"{end} has {height} x {width} places; it cannot be cut into {tiles} x {tiles} tiles"
        )
    return _cut_up(graph, end, tiles)


def _cut_up(graph: Graph, end: str, tiles: int) -> Graph:
    stage, (height, width) = _stage(graph, end), graph.tensors[end].shape[1:3]
    writing = _Writing(graph, dict(graph.tensors))
    for place, tile in _tiles(height, width, tiles):
        writing.paste(end, writing.patch(stage, end, tile, place), tile)
    gone = {name for op in stage for name in op.outputs} - {end}
    tensors = {name: tensor for name, tensor in writing.tensors.items() if name not in gone}
    ops = (*writing.ops, *_behind(graph, stage))
    more = len(ops) - len(graph.ops)
    return verify(replace(graph, ops=ops, tensors=tensors, n_forward=graph.n_forward + more))


def _tiles(height: int, width: int, tiles: int) -> Iterator[tuple[str, Region]]:
    """Of nearly the same size, with a name for each."""
    rows, columns = ([i * n // tiles for i in range(tiles + 1)] for n in (height, width))
    for i, j in product(range(tiles), repeat=2):
        extents = rows[i + 1] - rows[i], columns[j + 1] - columns[j]
        yield f"@{i}.{j}", Region(rows[i], columns[j], *extents)


@dataclass
class _Writing:
    """The patches as far as they are written. ``base`` holds the tiles that are made."""

    graph: Graph
    tensors: dict[str, Tensor]
    ops: list[Op] = field(default_factory=list)
    base: str = ""

    def paste(self, end: str, patch: str, tile: Region) -> None:
        """Put a tile beside those that are there."""
        whole = self.graph.tensors[end]
        is_last = (tile.bottom, tile.right) == whole.shape[1:3]
        name = end if is_last else fresh(f"{end}+", self.tensors)
        op, _ = produce("paste", (self.base, patch), (name,), self.tensors, tile, whole.shape)
        self.tensors[name] = replace(whole, name=name)
        self.ops.append(op)
        self.base = name

    def patch(self, stage: Sequence[Op], end: str, tile: Region, place: str) -> str:
        """Write the ops of one patch; gives its part of the end."""
        held, image = _held(self.graph, stage, end, tile), self.graph.input
        whole = Region(0, 0, *self.graph.tensors[image].shape[1:3])
        names = {image: self._crop(image, whole, held[image], f"{image}{place}")}
        for op in stage:
            names |= {name: f"{name}{place}" for name in op.outputs}
            self._emit(self._cut(op, held, names), op.outputs)
        return names[end]

    def _cut(self, op: Op, held: Mapping[str, Region], names: Mapping[str, str]) -> Op:
        """The op over a patch."""
        made, attributes, inputs = held[op.outputs[0]], op.attributes, list[str]()
        for name in op.inputs:
            if name not in held:
                inputs.append(name)
                continue
            wanted, padding = _seen(self.graph, op, name, made)
            inputs.append(self._crop(names[name], held[name], wanted, names[name]))
            if isinstance(attributes, Window):
                attributes = replace(attributes, padding=padding)
        return replace(
            op, inputs=tuple(inputs), outputs=tuple(map(names.__getitem__, op.outputs)),
            attributes=attributes,
        )  # fmt: skip

    def _crop(self, name: str, held: Region, wanted: Region, cropped: str) -> str:
        """What is wanted of a tensor that holds more."""
        if wanted == held:
            return name
        cropped = fresh(cropped, self.tensors)
        top, left = wanted.top - held.top, wanted.left - held.left
        region = Region(top, left, wanted.height, wanted.width)
        self._emit(Op("crop", (name,), (cropped,), attributes=region), (name,))
        return cropped

    def _emit(self, op: Op, originals: Sequence[str]) -> None:
        """Write an op; but for its shape each output is like its original."""
        _, made = produce(op.kind, op.inputs, op.outputs, self.tensors, op.attributes)
        for tensor, original in zip(made, originals, strict=False):
            like = self.tensors[original]
            home = ARENA if like.home == INPUT else like.home
            self.tensors[tensor.name] = replace(
                like, name=tensor.name, shape=tensor.shape, home=home
            )
        self.ops.append(op)


# ---- what a patch sees -----------------------------------------------------------------------


def _held(graph: Graph, stage: Sequence[Op], end: str, tile: Region) -> dict[str, Region]:
    """The part of every image of a stage that its tile sees."""
    held = {end: tile}
    for op in reversed(stage):
        made = held[op.outputs[0]]
        for name in op.inputs:
            if name and graph.tensors[name].home != PARAMETER:
                wanted, _ = _seen(graph, op, name, made)
                held[name] = _hull(held.get(name, wanted), wanted)
    return held


def _hull(one: Region, other: Region) -> Region:
    """The smallest region around two."""
    top, left = min(one.top, other.top), min(one.left, other.left)
    bottom, right = max(one.bottom, other.bottom), max(one.right, other.right)
    return Region(top, left, bottom - top, right - left)


def _seen(
    graph: Graph, op: Op, name: str, made: Region
) -> tuple[Region, tuple[int, int, int, int]]:
    """The part of an operand that an op sees where it makes this part of its output, and the
    padding that is left of its window."""
    window = op.attributes
    if not isinstance(window, Window):
        return made, (0, 0, 0, 0)
    weights = op.inputs[1:2]
    kernel = graph.tensors[weights[0]].shape[:2] if weights else window.kernel
    pooled = window.kernel if op.kind == "conv_pool" else (1, 1)
    sizes, spans = graph.tensors[name].shape[1:3], (made.rows, made.columns)
    axes = zip(spans, pooled, window.stride, window.padding[:2], kernel, sizes, strict=True)
    (top, bottom, above, below), (left, right, before, behind) = (
        _reach((first * pool, last * pool), *rest) for (first, last), pool, *rest in axes
    )
    return Region(top, left, bottom - top, right - left), (above, before, below, behind)


def _reach(
    outputs: tuple[int, int], stride: int, padding: int, kernel: int, size: int
) -> tuple[int, int, int, int]:
    """From where to where a window sees its operand, along one axis, to make the outputs from the
    one to the other; and the padding before and behind that."""
    start, stop = outputs[0] * stride - padding, (outputs[1] - 1) * stride - padding + kernel
    return max(start, 0), min(stop, size), max(-start, 0), max(stop - size, 0)


# ---- training --------------------------------------------------------------------------------


def remade(graph: Graph) -> Graph:
    """The training graph that makes each patch again before its way back."""
    forward = graph.ops[: graph.n_forward]
    wanted = {op.inputs[1] for op in forward if op.kind == "paste"}
    values: set[str] = set()
    for op in reversed(forward):
        if wanted.intersection(op.outputs):
            wanted.update(op.inputs)
            values.update(op.outputs)
    return run_again(graph, values, graph.n_forward)


# ---- choosing --------------------------------------------------------------------------------


def choose(graph: Graph, patches: int | str | Stage, training: Callable[[Graph], Graph]) -> Graph:
    """The forward graph with the stage that leaves the lowest peak, or as it is.

    Args:
        graph: A forward graph.
        patches: The tiles along each side; 1: none; ``auto``: as many as lower the peak; or a stage
            that was found before.
        training: Makes the training graph of a forward graph.

    Raises CompileError when the graph has no stage of so many tiles.
    """
    if patches == 1:
        return graph
    if isinstance(patches, Stage):
        return patched(graph, patches.end, patches.tiles)
    whole = training(graph)
    cuts = list(_cuts(graph, whole, TILES if patches == AUTO else (_checked(patches),), training))
    if patches != AUTO and not cuts:
        raise CompileError(
            f"the net has no first stage that can be cut into {patches} x {patches} patches: it "
            "takes an image, and layers that look at a window or at one place; patches=1 makes none"
        )
    least = min(cuts, key=lambda cut: (cut.peak_bytes, cut.macs), default=None)
    return least.graph if least else graph


def _checked(patches: int | str) -> int:
    if not isinstance(patches, int) or patches < 1:
        raise CompileError(f"patches must be 1 or more along each side, or {AUTO!r}; got {patches}")
    return patches


@dataclass(frozen=True, slots=True)
class _Cut:
    """A forward graph with patches, and what it costs."""

    graph: Graph
    peak_bytes: int
    macs: int


def _cuts(
    graph: Graph, whole: Graph, numbers: Sequence[int], training: Callable[[Graph], Graph]
) -> Iterator[_Cut]:
    """Every cut that may have the lowest peak."""
    best, most_macs = math.inf, MOST_WORK * _forward_macs(graph)
    for end, floor in _floors(graph, whole).items():
        places = min(graph.tensors[end].shape[1:3])
        for tiles in (n for n in numbers if n <= places and floor < best):
            made = _cut_up(graph, end, tiles)
            work = _forward_macs(made)
            if len(numbers) > 1 and work > most_macs:
                break
            peak_bytes = max(live_bytes(_spared(training(made))))
            yield _Cut(made, peak_bytes, work)
            best = min(best, peak_bytes)
            if peak_bytes <= floor:
                break


def _spared(graph: Graph) -> Graph:
    """The training graph with every mask and every buffer: what `saving` starts from."""
    graph = masked(graph, maskable(graph))
    return buffered(graph, bufferable(graph))


def _forward_macs(graph: Graph) -> int:
    return sum(macs(op, graph.tensors) for op in graph.ops)


def _floors(graph: Graph, whole: Graph) -> dict[str, int]:
    """The ends of stages, and what the forward ops behind each need without a single value of the
    stage but its end. An end that is larger than one before it spares nothing more; of ends that
    an op leads to place by place the last one stands for all."""
    floors, least = dict[str, int](), math.inf
    base = _spared(whole)
    alive, lives = live_bytes(base), lifetimes(base)
    index = {name: i for i, op in enumerate(base.ops[: base.n_forward]) for name in op.outputs}
    for end in _last_of_each(graph, stage_ends(graph)):
        if end in index and graph.tensors[end].size <= least:
            least = graph.tensors[end].size
            inner = {name for op in _stage(base, end) for name in op.outputs} - {end}
            floors[end] = max(
                alive[at] - sum(base.tensors[n].nbytes for n in inner if lives[n][1] >= at)
                for at in range(index[end] + 1, base.n_forward + 1)
            )
    return floors


def _last_of_each(graph: Graph, ends: Sequence[str]) -> Iterator[str]:
    """The ends that no op takes to another end place by place."""
    passed = {
        op.inputs[0] for op in graph.ops
        if op.kind in _PLACEWISE and op.outputs[0] in ends and op.kind not in ("add", "concat")
    }  # fmt: skip
    return (end for end in ends if end not in passed)

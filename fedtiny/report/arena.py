"""The arena over time as a picture: when each tensor is alive, and where it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedtiny.engine.ir import F32, Graph
from fedtiny.engine.liveness import lifetimes, live_bytes
from fedtiny.engine.memory import MemoryPlan
from fedtiny.engine.ops import FORWARD, GRADIENT, NORM, TABLE, UPDATE
from fedtiny.engine.program import RAM_PARTS, ram_parts
from fedtiny.errors import ExperimentError
from fedtiny.report.units import scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
_INCHES = (12.0, 5.6)
_MAP_INCHES = (9.3, 4.2)  # about: what is left for the arena itself
_DPI = 150
_FEW = 48  # so few ops are called by their names
_FONT = 7.0
_LETTER = 0.62  # width of a letter, in font sizes

_INK, _MUTED, _PEAK = "#16191d", "#5b636d", "#b23c00"
_VALUE, _AGAIN, _GRADIENT, _SMALL = "#7db8dd", "#f0c36b", "#eda07a", "#8cc9b4"
_EDGES = {_VALUE: "#3f87b5", _AGAIN: "#b98a24", _GRADIENT: "#b95f38", _SMALL: "#3f8f74"}
_LEGEND = {
    _VALUE: "value",
    _AGAIN: "made again",
    _GRADIENT: "gradient",
    _SMALL: "mask, codes, statistics",
}
_PHASES = {"forward": "#eef4f9", "backward": "#ffffff", "update": "#ececee"}
_PARTS = dict(zip(
    RAM_PARTS,
    ("#0072b2", "#e69f00", "#cc79a7", "#56b4e9", "#009e73", "#a3abb5", "#d55e00", "#f0e442"),
    strict=True,
))  # fmt: skip
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "arena",
    "font.size": 8.5,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


def draw(graph: Graph, plan: MemoryPlan, report: Mapping[str, int], path: Path) -> None:
    """Write the picture of a training graph's arena, and the parts of the RAM beside it.

    The same graph and plan give the same bytes.

    Args:
        graph: A training graph.
        plan: Where its tensors stand.
        report: The report of its Program.
        path: A ``.png`` or ``.svg`` file.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ExperimentError(f"cannot draw {path.name}; the picture is a .png or an .svg file")
    with rc_context(STYLE):
        figure = Figure(figsize=_INCHES, layout="constrained")
        arena, ram = figure.subplots(1, 2, width_ratios=(14, 1))
        _draw_arena(arena, graph, plan)
        _draw_ram(ram, report)
        _legend(figure)
        nothing = {".png": ("Software",), ".svg": ("Date", "Creator")}[suffix]
        figure.savefig(path, dpi=_DPI, metadata=dict.fromkeys(nothing))


# ---- the arena -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A tensor in the picture: ops by bytes."""

    name: str
    colour: str
    left: float
    right: float
    offset: int
    nbytes: int


def _draw_arena(axes: Axes, graph: Graph, plan: MemoryPlan) -> None:
    by, unit = scale(plan.arena_bytes, "B")
    height = 1.08 * plan.arena_bytes / by
    axes.set_xlim(0, len(graph.ops))
    axes.set_ylim(0, height)
    for phase, first, stop in _phases(graph):
        axes.axvspan(first, stop, color=_PHASES[phase], linewidth=0, zorder=0)
    drawn = list(blocks(graph, plan))
    shapes = [Rectangle((b.left, b.offset / by), b.right - b.left, b.nbytes / by) for b in drawn]
    faces, edges = [b.colour for b in drawn], [_EDGES[b.colour] for b in drawn]
    axes.add_collection(
        PatchCollection(shapes, facecolor=faces, edgecolor=edges, linewidth=0.4, zorder=2)
    )
    for block in drawn:
        _label(axes, block, len(graph.ops), by, height)
    _mark_peak(axes, graph, plan, by)
    _finish(axes, graph, unit)


def _phases(graph: Graph) -> Iterator[tuple[str, int, int]]:
    """Runs of ops of one phase."""

    def phase(index: int) -> str:
        if TABLE[graph.ops[index].kind].role in (UPDATE, NORM, GRADIENT):
            return "update"
        return "forward" if index < graph.n_forward else "backward"

    for name, run in groupby(range(len(graph.ops)), phase):
        indices = list(run)
        yield name, indices[0], indices[-1] + 1


def blocks(graph: Graph, plan: MemoryPlan) -> Iterator[Block]:
    """Every tensor from the op that makes it on; one that takes the place of another does so in
    the middle of that op."""
    lives = lifetimes(graph)
    makers = {name: index for index, op in enumerate(graph.ops) for name in op.outputs}
    ends = {(plan.offsets[n], last): n for n, (_, last) in lives.items()}
    taken = {(plan.offsets[n], first) for n, (first, _) in lives.items()}
    for name, (first, last) in lives.items():
        offset = plan.offsets[name]
        takes = ends.get((offset, first), name) != name
        given = (offset, last) in taken and last > first
        yield Block(
            name, _colour(graph, name, makers[name]), first + 0.5 * takes,
            min(last, len(graph.ops) - 1) + (0.5 if given else 1.0),
            offset, graph.tensors[name].nbytes,
        )  # fmt: skip


def _colour(graph: Graph, name: str, made: int) -> str:
    op = graph.ops[made]
    if graph.tensors[name].dtype != F32 or name != op.outputs[0]:
        return _SMALL
    if made < graph.n_forward:
        return _VALUE
    return _AGAIN if TABLE[op.kind].role == FORWARD and op.kind != "add" else _GRADIENT


def _label(axes: Axes, block: Block, ops: int, by: float, height: float) -> None:
    """The name, along or across, where there is room for it."""
    wide = (block.right - block.left) / ops * _MAP_INCHES[0] * 72
    high = block.nbytes / by / height * _MAP_INCHES[1] * 72
    long, thick = _FONT * _LETTER * len(block.name), 1.3 * _FONT
    turned = not (wide > long and high > thick)
    if turned and not (high > long and wide > thick):
        return
    middle = (block.left + block.right) / 2, (block.offset + block.nbytes / 2) / by
    axes.text(
        *middle, block.name, fontsize=_FONT, ha="center", va="center",
        rotation=90 * turned, zorder=4,
    )  # fmt: skip


def _mark_peak(axes: Axes, graph: Graph, plan: MemoryPlan, by: float) -> None:
    """The op with the most bytes alive, and what no plan can stay below."""
    alive = live_bytes(graph)
    most = max(alive)
    at = alive.index(most)
    op = graph.ops[at]
    axes.axvspan(at, at + 1, facecolor="none", edgecolor=_PEAK, linewidth=0.8, zorder=3)
    axes.axhline(plan.arena_bytes / by, color=_INK, linewidth=0.8, zorder=3)
    axes.axhline(most / by, color=_PEAK, linewidth=0.8, dashes=(4, 3), zorder=3)
    of = op.outputs[0] if op.outputs else op.parameter
    said = f"lower bound {most:,} B, in op {at}: {op.kind} of {of}"
    axes.set_title(f"arena {plan.arena_bytes:,} B", loc="left", fontsize=9, fontweight="bold")
    axes.set_title(said, loc="right", fontsize=8.5, color=_PEAK)


def _finish(axes: Axes, graph: Graph, unit: str) -> None:
    axes.set_ylabel(f"offset ({unit})")
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    if len(graph.ops) <= _FEW:
        axes.set_xticks([i + 0.5 for i in range(len(graph.ops))])
        axes.set_xticklabels([op.kind for op in graph.ops], rotation=90, fontsize=_FONT)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.set_xlabel("op, in the order of execution")


def _legend(figure: Figure) -> None:
    shown = [Patch(color=colour, label=name) for colour, name in _LEGEND.items()]
    shown += [Patch(fc=colour, ec=_MUTED, lw=0.4, label=name) for name, colour in _PHASES.items()]
    figure.legend(
        handles=shown, loc="outside lower center", ncols=len(shown), frameon=False, fontsize=8,
        handlelength=1.2, handleheight=1.0, columnspacing=1.4,
    )  # fmt: skip


def _plain(value: float, _: object) -> str:
    return f"{value:,.10g}"


# ---- the RAM ---------------------------------------------------------------------------------


def _draw_ram(axes: Axes, report: Mapping[str, int]) -> None:
    """The parts of the RAM on top of each other."""
    by, unit = scale(report["ram_bytes"], "B")
    whole, bottom = report["ram_bytes"] / by, 0.0
    for part, nbytes in ram_parts(report).items():
        high = nbytes / by
        axes.bar(0, high, bottom=bottom, color=_PARTS[part], edgecolor="white", linewidth=0.4)
        if high > 0.06 * whole:
            axes.text(
                0, bottom + high / 2, f"{part}\n{high:.3g}", fontsize=_FONT, ha="center",
                va="center",
            )  # fmt: skip
        bottom += high
    axes.set_title(f"RAM\n{whole:.4g} {unit}", fontsize=8.5, fontweight="bold")
    axes.set_ylim(0, whole)
    axes.set_axis_off()

"""The plots of a report as inline SVG, in colours that the page's style sheet decides."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fedtiny.report.record import Point, Record, Series, Stream
from fedtiny.report.units import scale, time_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fedtiny.tensors import Float64

SERIES = 6
"""Colours that the style sheet has; a seventh evaluation takes the first again."""
_INCHES = (4.2, 2.5)
_BINS = 96
_FEW = 12  # so few points are marked one by one
_STEPS = (1, 2, 5, 10)
_LEAST_FALL = 12.0  # a loss that falls further than this is drawn on a logarithmic axis

# matplotlib wants real colours: each of these stands for a variable of the style sheet.
_INK, _MUTED, _GRID, _UNANSWERED = "#010101", "#020202", "#030303", "#040404"
_COLOURS = tuple(f"#0501{i:02x}" for i in range(SERIES))
_SHADES = tuple(f"#0502{i:02x}" for i in range(21))
_PAINTS = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--grid)",
    _UNANSWERED: "var(--unanswered)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(_COLOURS)},
    **{
        shade: f"color-mix(in oklab, var(--series-1) {5 * i}%, var(--series-0))"
        for i, shade in enumerate(_SHADES)
    },
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 8.5,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0,
    "ytick.minor.width": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 3,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Plot:
    """One drawing: what its vertical axis shows, and its SVG."""

    title: str
    svg: str


# ---- learning --------------------------------------------------------------------------------


def learning(record: Record, measure: str) -> list[Plot]:
    """The evaluations of one measure against rounds, time, bytes and energy, a panel each."""
    return [_panel(record, measure, *against) for against in _against(record)]


_Axis = tuple[str, Callable[[Point], float]]


def _against(record: Record) -> list[_Axis]:
    last = [points[-1] for points in record.evaluations.values()]
    by_time, time_unit = time_scale(max(p.time_s for p in last))
    by_bytes, byte_unit = scale(max(p.nbytes for p in last), "B")
    by_energy, energy_unit = scale(max(p.energy_j for p in last), "J")
    clock = "time of service" if record.is_deployed else "virtual time"
    costs: list[_Axis] = [
        ("rounds", lambda p: p.round),
        (f"{clock} ({time_unit})", lambda p: p.time_s / by_time),
        (f"bytes carried ({byte_unit})", lambda p: p.nbytes / by_bytes),
        (f"energy of all devices ({energy_unit})", lambda p: p.energy_j / by_energy),
    ]
    return costs[:-1] if record.is_deployed else costs


def _panel(record: Record, measure: str, label: str, place: Callable[[Point], float]) -> Plot:
    points = [point for points in record.evaluations.values() for point in points]
    with _drawing() as (figure, axes):
        for index, series in enumerate(record.evaluations.values()):
            _draw_adapting(axes, series, measure, place, _COLOURS[index % SERIES])
        values = [p.measure(measure, when)[0] for p in points for when in ("before", "after")]
        title = _finish_value_axis(axes, measure, values)
        _finish_x_axis(axes, label, max(map(place, points)))
        return Plot(title, _svg(figure, f"{measure} against {label}"))


def _draw_adapting(
    axes: Axes, points: list[Point], measure: str, place: Callable[[Point], float], colour: str
) -> None:
    x = [place(p) for p in points]
    for when, dashes, alpha in (("before", (3, 2), 0.1), ("after", (None, None), 0.2)):
        value, half = np.array([p.measure(measure, when) for p in points]).T
        axes.fill_between(x, value - half, value + half, color=colour, alpha=alpha, linewidth=0)
        axes.plot(x, value, color=colour, dashes=dashes, marker=_marker(x), clip_on=False)


# ---- training --------------------------------------------------------------------------------


def training(record: Record) -> Plot | None:
    """The loss on the devices while they train; None when no round gave one."""
    rows = [(row["round"] + 1, row["loss"]) for row in record.rounds if row["loss"] is not None]
    if not rows:
        return None
    bins = np.array_split(np.array(rows, float), min(len(rows), _BINS))
    x, mean = np.array([part.mean(axis=0) for part in bins]).T
    with _drawing() as (figure, axes):
        if len(rows) > len(bins):
            low, high = np.array([np.quantile(part[:, 1], (0.1, 0.9)) for part in bins]).T
            axes.fill_between(x, low, high, color=_MUTED, alpha=0.18, linewidth=0)
        axes.plot(x, mean, color=_INK, linewidth=1.2, marker=_marker(bins), clip_on=False)
        title = _finish_value_axis(axes, "training loss", mean.tolist())
        _finish_x_axis(axes, "rounds", rows[-1][0])
        return Plot(title, _svg(figure, "training loss against rounds"))


def participation(record: Record) -> Plot | None:
    """What became of the leases of a round: accepted, refused, unanswered; stacked."""
    if not record.rounds:
        return None
    counts = np.array([[r["leases"], r["accepted"], r["refused"]] for r in record.rounds], float)
    bins = np.array_split(counts, min(len(counts), _BINS))
    leases, accepted, refused = np.array([part.mean(axis=0) for part in bins]).T
    edges = np.cumsum([0, *(len(part) for part in bins)])
    bottom, tops = np.zeros(len(bins)), (accepted, accepted + refused, leases)
    with _drawing() as (figure, axes):
        for top, colour in zip(tops, (_COLOURS[0], _COLOURS[1], _UNANSWERED), strict=True):
            axes.stairs(top, edges, baseline=bottom, fill=True, color=colour, linewidth=0)
            bottom = top
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS, integer=bool(leases.max() >= 4)))
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        _finish_x_axis(axes, "rounds", len(counts))
        return Plot("devices in a round", _svg(figure, "devices in a round"))


# ---- online learning -------------------------------------------------------------------------


def streams(met: Sequence[Stream]) -> list[Plot]:
    """Those that drift alike, against the samples that they have met; the grey part is the drift.

    The first plot shows how well they are predicted, the second where steps are taken.
    """
    return [_met(met, met[0].measure), _met(met, "steps")]


def _met(met: Sequence[Stream], what: str) -> Plot:
    curves = [np.array(each.curve) for each in met]
    first, last = met[0], met[0].row["samples"]
    with _drawing() as (figure, axes):
        least = last / 300  # a sudden drift is a line
        axes.axvspan(first.begins, max(first.ends, first.begins + least), color=_GRID, linewidth=0)
        for index, curve in enumerate(curves):
            _draw_met(axes, curve, what, _COLOURS[index % SERIES])
        values = [value for curve in curves for value in curve[:, 1]]
        shares = what == "steps"
        title = _finish_value_axis(axes, "accuracy" if shares else what, values)
        _finish_x_axis(axes, "samples met", last)
        told = "samples with a step (%)" if shares else title
        return Plot(told, _svg(figure, f"{what} against samples met, {first.domain}"))


def _draw_met(axes: Axes, curve: Float64, what: str, colour: str) -> None:
    x, y, half, shares = curve.T
    if what == "steps":
        y = shares
    else:
        axes.fill_between(x, y - half, y + half, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, y, color=colour, marker=_marker(x), clip_on=False)


# ---- pruning ---------------------------------------------------------------------------------


def by_layer(series: Series, label: str, factor: float) -> Plot:
    """A line for each layer, level from one round in which it was told to the next."""
    with _drawing() as (figure, axes):
        for colour, points in zip(_of_layers(len(series)), series.values(), strict=True):
            x, y = np.array(points, float).T
            axes.plot(
                x, factor * y, color=colour, drawstyle="steps-post", marker=_marker(points),
                clip_on=False,
            )  # fmt: skip
        values = [factor * value for points in series.values() for _, value in points]
        title = _finish_value_axis(axes, label, values)
        _finish_x_axis(axes, "rounds", max(points[-1][0] for points in series.values()))
        return Plot(title, _svg(figure, f"{label} against rounds"))


def layer_paints(count: int) -> list[str]:
    """The style sheet's colour of each layer's line."""
    return [_PAINTS[colour] for colour in _of_layers(count)]


def _of_layers(count: int) -> list[str]:
    """A colour each; of more layers than there are colours, shades from the first to the last."""
    if count <= SERIES:
        return list(_COLOURS[:count])
    return [_SHADES[round(i * (len(_SHADES) - 1) / (count - 1))] for i in range(count)]


def _marker(points: Sequence[object]) -> str | None:
    """A point that stands alone has no line to be seen by."""
    return "o" if len(points) <= _FEW else None


# ---- axes ------------------------------------------------------------------------------------


def _finish_x_axis(axes: Axes, label: str, last: float) -> None:
    axes.set_xlabel(label)
    axes.set_xlim(0, last or 1)
    axes.grid(visible=False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))


def _finish_value_axis(axes: Axes, measure: str, values: list[float]) -> str:
    """Limits and ticks that suit the values; returns what to call the axis."""
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    finite = [value for value in values if np.isfinite(value)]
    if measure == "accuracy":
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
        return "accuracy (%)"
    if not finite or min(finite) <= 0 or max(finite) < _LEAST_FALL * min(finite):
        axes.set_ylim(0, 1.1 * max(finite, default=1.0))
        return measure
    _make_logarithmic(axes, min(finite), max(finite))
    return f"{measure} (logarithmic)"


def _make_logarithmic(axes: Axes, least: float, most: float) -> None:
    axes.set_yscale("log")
    axes.set_ylim(0.7 * least, 1.3 * most)
    steps = (1.0,) if most > 300 * least else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_minor_locator(NullLocator())


def _plain(value: float, _: object) -> str:
    return f"{value:,.10g}"


# ---- from matplotlib to the page -------------------------------------------------------------


@contextmanager
def _drawing() -> Iterator[tuple[Figure, Axes]]:
    with rc_context(_STYLE):
        figure = Figure(figsize=_INCHES, layout="constrained")
        yield figure, figure.add_subplot()


def _svg(figure: Figure, label: str) -> str:
    """The drawing as an element of the page; the salt keeps the ids of two drawings apart."""
    file = io.StringIO()
    with rc_context({"svg.hashsalt": label}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :].strip()
    drawn = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawn).replace("xlink:href", "href")
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)
    drawn = re.sub(r'<svg width="[^"]*" height="[^"]*"|<svg height="[^"]*"', "<svg", drawn, count=1)
    drawn = re.sub(r"font: [^;\"]*", _font, drawn)
    for colour, paint in _PAINTS.items():
        drawn = drawn.replace(colour, paint)
    return drawn.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _font(match: re.Match[str]) -> str:
    """The size alone: the page says which family."""
    size = re.search(r"[\d.]+px", match[0])
    return f"font-size: {size[0] if size else '8.5px'}"


def figures(drawn: Iterable[Plot]) -> str:
    """The drawings side by side, as far as the page is wide."""
    parts = "\n".join(
        f"<figure><figcaption>{plot.title[:1].upper()}{plot.title[1:]}</figcaption>\n{plot.svg}</figure>"
        for plot in drawn
    )
    return f'<div class="plots">\n{parts}\n</div>'

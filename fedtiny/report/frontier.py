"""What plans give and take, as a picture: gain and accuracy by the RAM that they need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedtiny.errors import ExperimentError
from fedtiny.report.arena import FORMATS, STYLE
from fedtiny.report.units import scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fedtiny.experiment.planning import Judged

_INCHES, _DPI = (9.6, 3.6), 150
_LINE, _BEST = "#0072b2", "#b23c00"


def draw(judged: Sequence[Judged], path: Path) -> None:
    """Write the picture of a frontier, the best plan last; the same plans give the same bytes.

    Args:
        judged: The plans.
        path: A ``.png`` or ``.svg`` file.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ExperimentError(f"cannot draw {path.name}; the picture is a .png or an .svg file")
    classes = judged[0].accuracy is not None
    score = "accuracy after a short training" if classes else "loss after a short training"
    rows: tuple[tuple[str, Sequence[float]], ...] = (
        ("gain, in units of the head's", [row.found.gain for row in judged]),
        (score, [row.loss if row.accuracy is None else row.accuracy for row in judged]),
        ("multiply-adds a step", [row.found.macs_per_step for row in judged]),
    )
    with rc_context(STYLE):
        figure = Figure(figsize=_INCHES, layout="constrained")
        for axes, (title, values) in zip(figure.subplots(1, len(rows)), rows, strict=True):
            _draw_one(axes, title, [row.found.ram_bytes for row in judged], values)
        nothing = {".png": ("Software",), ".svg": ("Date", "Creator")}[suffix]
        try:
            figure.savefig(path, dpi=_DPI, metadata=dict.fromkeys(nothing))
        except OSError as error:
            raise ExperimentError(f"{path} cannot be written: {error.strerror}") from error


def _draw_one(axes: Axes, title: str, ram: Sequence[int], values: Sequence[float]) -> None:
    (by, unit), (high_by, prefix) = scale(max(ram), "B"), scale(max(values), "")
    across, up = [x / by for x in ram], [value / high_by for value in values]
    axes.plot(across, up, marker="o", markersize=4, linewidth=1, color=_LINE)
    axes.plot(across[-1:], up[-1:], marker="o", markersize=7, color=_BEST, linestyle="none")
    axes.set_title(f"{title} ({prefix})" if prefix else title, loc="left", fontsize=8.5)
    axes.set_xlabel(f"RAM ({unit})")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(visible=True, color="#e5e8ec", linewidth=0.6)

"""The section on pruning: how dense each layer was, round by round, and how compressible it is."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from fedtiny.report import plots
from fedtiny.report.markup import legend, swatch, wide_table

if TYPE_CHECKING:
    from fedtiny.report.plots import Plot
    from fedtiny.report.record import Record, Series

DENSITY, PQ_INDEX = "density", "pq"
"""What a strategy that prunes tells of each layer: ``density.conv1``, ``pq.conv1``."""


def pruning_section(record: Record) -> Iterator[str]:
    """Nothing, unless the strategy tells of densities."""
    densities, indices = record.telemetry(DENSITY), record.telemetry(PQ_INDEX)
    if not densities:
        return
    yield "<h2>Pruning</h2>"
    yield (
        '<p class="note">The share of each layer\'s weights that are live, and the PQ index of '
        "the live ones: 0 where all are equally large, near 1 where few of them matter.</p>"
    )
    yield legend(map(swatch, plots.layer_paints(len(densities)), densities))
    yield from _drawn(densities, indices)
    heads = "<th>layer</th><th>density<br>first</th><th>last</th><th>PQ index<br>last</th>"
    yield wide_table(heads, _rows(densities, indices))
    yield from _operations(record)


def _drawn(densities: Series, indices: Series) -> Iterator[str]:
    drawn: list[Plot] = [plots.by_layer(densities, "density (%)", 100)]
    if indices:
        drawn.append(plots.by_layer(indices, "PQ index", 1))
    yield plots.figures(drawn)


def _rows(densities: Series, indices: Series) -> Iterator[str]:
    for layer, points in densities.items():
        index = f"{indices[layer][-1][1]:.2g}" if layer in indices else ""
        first, last = (f"{100 * points[at][1]:.3g} %" for at in (0, -1))
        yield (
            f'<tr class="last"><th scope="row">{escape(layer)}</th>'
            f"<td>{first}</td><td>{last}</td><td>{index}</td></tr>"
        )


def _operations(record: Record) -> Iterator[str]:
    for profile in record.profiles:
        report = profile["report"]
        if report.get("live_values"):
            yield (
                f'<p class="note">{escape(profile["name"])}: at most {report["live_values"]:,} '
                f"live weights, found by {report['index_bytes']:,} B of index; a training step "
                f"takes {report['macs_per_step']:,} multiply-adds.</p>"
            )

"""The report as one page of HTML: no script, nothing to fetch, light and dark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import Any

from fedtiny.report import plots
from fedtiny.report.markup import legend, line, swatch, wide_table
from fedtiny.report.memory import memory_section
from fedtiny.report.online import online_section
from fedtiny.report.plots import SERIES
from fedtiny.report.pruning import pruning_section
from fedtiny.report.record import Point, Record
from fedtiny.report.units import si
from fedtiny.simulator.clock import format_time

_DEVICES = '<{0} class="spare">{1}</{0}>'
"""A cell of the column that a narrow screen leaves out."""


def page(record: Record) -> str:
    """The whole document."""
    sections = (
        _header, _results, _learning, online_section, _training, pruning_section, memory_section,
        _facts, _experiment,
    )  # fmt: skip
    body = "\n".join(part for section in sections for part in section(record))
    style = files("fedtiny.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(record.title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


# ---- what came of it -------------------------------------------------------------------------


def _header(record: Record) -> Iterator[str]:
    rounds, planned = record.summary["rounds"], record.experiment["run"]["rounds"]
    yield f"<h1>{escape(record.title)}</h1>"
    yield f'<p class="lede">{_devices(record)}; {rounds:,} rounds.</p>'
    if not record.is_complete:
        yield f'<p class="bad">The run stopped after {rounds:,} of {planned:,} rounds.</p>'
    tiles = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>"
        for name, value, more in _tiles(record)
    )
    yield f'<dl class="tiles">{tiles}</dl>'


def _devices(record: Record) -> str:
    fleet, kind = record.experiment["fleet"], "real" if record.is_deployed else "simulated"
    held_out = f"{fleet['held_out']:,} of them held out and never trained on"
    return f"{fleet['devices']:,} {kind} devices, {held_out}"


def _tiles(record: Record) -> Iterator[tuple[str, str, str]]:
    s = record.summary
    carried = s["bytes_down"] + s["bytes_up"]
    clock = "Time of service" if record.is_deployed else "Virtual time"
    yield clock, format_time(s["time_s"]), "until the last round closed"
    yield "Updates", f"{s['updates']:,}", f"{s['refused']:,} refused"
    parts = f"{si(s['bytes_down'], 'B')} down, {si(s['bytes_up'], 'B')} up"
    yield "Carried", si(carried, "B"), parts
    if not record.is_deployed:
        a_visit = s["energy_j"] / s["updates"] if s["updates"] else 0.0
        yield "Energy", si(s["energy_j"], "J"), f"{si(a_visit, 'J')} an update"


def _results(record: Record) -> Iterator[str]:
    yield "<h2>Results</h2>"
    if not record.evaluations:
        yield '<p class="note">Nothing was evaluated: the experiment names no way to adapt.</p>'
        return
    yield (
        '<p class="note">Held-out devices are judged on their query samples before and after '
        "they adapt the model to their support samples. Mean over devices ± half-width of the "
        "95 % interval.</p>"
    )
    heads = [f"<th>{m}<br>{when}</th>" for m in record.measures for when in ("before", "after")]
    cells = "<th></th><th>round</th>" + _DEVICES.format("th", "devices") + "".join(heads)
    yield wide_table(cells, _result_rows(record))


def _result_rows(record: Record) -> Iterator[str]:
    for name, points in record.evaluations.items():
        yield _result_row(record, name, points[-1], "last")
        if len(points) > 1:
            yield _result_row(record, name, points[0], "first")


def _result_row(record: Record, name: str, point: Point, place: str) -> str:
    cells = "".join(
        f'<td class="{when}">{point.told(measure, when)}</td>'
        for measure in record.measures
        for when in ("before", "after")
    )
    counts = f"<td>{point.round:,}</td>" + _DEVICES.format("td", f"{point.row['devices']:,}")
    return f'<tr class="{place}"><th scope="row">{escape(name)}</th>{counts}{cells}</tr>'


# ---- plots -----------------------------------------------------------------------------------


def _learning(record: Record) -> Iterator[str]:
    if not record.evaluations:
        return
    yield "<h2>Learning</h2>"
    yield '<p class="note">The same evaluations against what they cost, with 95 % intervals.</p>'
    names = enumerate(record.evaluations)
    swatches = [swatch(f"var(--series-{i % SERIES})", name) for i, name in names]
    lines = [line("line", "after adapting"), line("line dashed", "before adapting")]
    yield legend(swatches * (len(swatches) > 1) + lines)
    for measure in record.measures:
        yield plots.figures(plots.learning(record, measure))


def _training(record: Record) -> Iterator[str]:
    loss, fleet = plots.training(record), plots.participation(record)
    if fleet is None:
        return
    failed = record.summary["failed_rounds"]
    yield "<h2>Training</h2>"
    yield (
        '<p class="note">The loss on the devices as they train (mean, and a band that holds the '
        "middle 80 % of the rounds), and what became of the devices that were asked."
        f"{f' {failed:,} rounds failed for want of updates.' if failed else ''}</p>"
    )
    named = (("series-0", "accepted"), ("series-1", "refused"), ("unanswered", "unanswered"))
    yield legend(swatch(f"var(--{variable})", name) for variable, name in named)
    yield plots.figures([plot for plot in (loss, fleet) if plot])
    yield from (f'<p class="reason">{escape(why)}</p>' for why in record.refusals)


# ---- what was asked for ----------------------------------------------------------------------


def _facts(record: Record) -> Iterator[str]:
    rows = "".join(
        f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in _named_facts(record)
    )
    yield f'<h2>The experiment</h2>\n<dl class="facts">{rows}</dl>'


def _named_facts(record: Record) -> Iterator[tuple[str, str]]:
    e = record.experiment
    live = "live " * record.prunes
    floats = "" if record.parameters is None else f", {record.parameters:,} {live}parameters"
    yield "Model", f"{_named(e['model'], 'build')}{floats}"
    yield "Data", _named(e["data"], "source")
    yield "Strategy", _named(e["strategy"], "name")
    yield "Fleet", _named(e["fleet"], "devices")
    yield "Run", _named(e["run"], "rounds")
    yield "Seed", str(e["seed"])
    if "model_digest" in record.summary:
        yield "Final model", f"SHA-256 {record.summary['model_digest']}"


def _named(section: Mapping[str, Any], first: str) -> str:
    rest = {k: v for k, v in section.items() if k != first and v != {}}
    told = f"{section[first]}" if first in section else ""
    return ", ".join(filter(None, (told, *(f"{k} {_shown(v)}" for k, v in rest.items()))))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{k} {_shown(v)}" for k, v in value.items()) + ")"
    if isinstance(value, list):
        return "(" + ", ".join(map(_shown, value)) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _experiment(record: Record) -> Iterator[str]:
    yield f"<pre>{escape(record.text)}</pre>"

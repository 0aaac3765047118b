"""The section on online learning: what devices made of streams that drift, gate beside gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING

from fedtiny.report import plots
from fedtiny.report.markup import legend, swatch, wide_table
from fedtiny.report.units import si, with_interval

if TYPE_CHECKING:
    from fedtiny.report.record import Record, Stream

_OF_A_GATE = ("gate", "threshold", "window", "lr", "clip")
_HEADS = (
    "met before<br>the drift", "met from the<br>drift on", "new domain<br>after",
    "first domain<br>after", "forgotten", "samples<br>with a step", "steps<br>saved",
    "energy<br>of steps",
)  # fmt: skip
_VALUES = "before_drift", "from_drift", "new_after", "first_after", "forgetting"


def online_section(record: Record) -> Iterator[str]:
    """Nothing, unless devices have met streams."""
    if not record.online:
        return
    yield "<h2>Online learning</h2>"
    yield (
        '<p class="note">After the last round devices predict each sample of a stream that drifts, '
        "and then take a step on it where the gate says so. Each device is judged on other samples "
        "of the first and of the new domain, before the stream and after it. Mean over devices "
        "± half-width of the 95 % interval; steps and energy are those of one device.</p>"
    )
    for alike in _alike(record.online):
        yield from _told(alike)


def _alike(online: Mapping[str, Stream]) -> list[dict[str, Stream]]:
    """Those that differ in their gates alone, together."""
    groups: dict[str, dict[str, Stream]] = {}
    for name, met in online.items():
        key = repr(sorted((k, v) for k, v in met.asked.items() if k not in _OF_A_GATE))
        groups.setdefault(key, {})[name] = met
    return list(groups.values())


def _told(alike: Mapping[str, Stream]) -> Iterator[str]:
    met = list(alike.values())
    unit = "accuracy in %" if met[0].measure == "accuracy" else "loss"
    new, first = (with_interval(*met[0].value(f"{name}_before")) for name in ("new", "first"))
    yield (
        f'<p class="note">{escape(met[0].domain)}: {met[0].row["devices"]:,} devices, {unit}; '
        f"{new} in the new domain and {first} in the first one before the stream.</p>"
    )
    names = enumerate(alike)
    yield legend(swatch(f"var(--series-{i % plots.SERIES})", name) for i, name in names)
    yield plots.figures(plots.streams(met))
    heads = "<th></th>" + "".join(f"<th>{head}</th>" for head in _HEADS)
    yield wide_table(heads, (_row(name, each) for name, each in alike.items()))


def _row(name: str, met: Stream) -> str:
    row = met.row
    cells = [with_interval(*met.value(value)) for value in _VALUES]
    cells += [met.steps, f"{row['steps_saved']:,.0f}", si(row["adaptation_j"], "J")]
    told = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="last"><th scope="row">{escape(name)}</th>{told}</tr>'

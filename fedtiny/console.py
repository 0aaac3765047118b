"""What the operator sees in the terminal: the progress of a run, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from fedtiny.engine.program import ram_parts
from fedtiny.report.record import Record
from fedtiny.report.units import binary, percent, si, with_interval
from fedtiny.simulator.clock import format_time

if TYPE_CHECKING:
    from fedtiny.experiment.explain import OnlineCost, Pruning, Row
    from fedtiny.simulator.run import Progress

_WHEN = ("before", "after")
_BAR_EVERY_S, _LINE_EVERY_S = 0.1, 5.0


# ---- progress --------------------------------------------------------------------------------


@dataclass
class Pace:
    """Shows at most one report in ``every_s`` seconds, and the last; knows the rates between.

    The rates are those since the first report: a resumed run has older rounds behind it.
    """

    every_s: float
    show: Callable[[Progress, list[str]], None]
    first: Progress | None = None
    last: Progress | None = None
    shown_s: float = 0.0

    def take(self, now: Progress) -> None:
        """One more round has committed."""
        self.first, self.last = self.first or now, now
        if now.wall_s - self.shown_s >= self.every_s or now.round == now.rounds:
            self.shown_s = now.wall_s
            self.show(now, self._told(now))

    @property
    def updates_per_s(self) -> float:
        """Accepted updates in a second of wall time; 0 when there was too little to tell."""
        return self._rate("updates")

    def _rate(self, what: str) -> float:
        if self.first is None or self.last is None or self.last.wall_s <= self.first.wall_s:
            return 0.0
        done = getattr(self.last, what) - getattr(self.first, what)
        return float(done / (self.last.wall_s - self.first.wall_s))

    def _told(self, now: Progress) -> list[str]:
        rounds_per_s = self._rate("round")
        parts = [f"round {now.round:,}/{now.rounds:,}"]
        if rounds_per_s and now.round < now.rounds:
            parts.append(f"{format_time((now.rounds - now.round) / rounds_per_s)} left")
        if rounds_per_s:
            parts.append(f"{self.updates_per_s:,.0f} updates/s")
        parts.append(f"virtual time {format_time(now.time_s)}")
        if now.loss is not None:
            parts.append(f"loss {now.loss:.4g}")
        return parts


@contextmanager
def watched(console: Console) -> Iterator[Pace]:
    """Shows how a run goes: a bar in a terminal, else a line now and then."""
    if not console.is_terminal:
        yield Pace(_LINE_EVERY_S, lambda _, parts: console.out(" · ".join(parts), highlight=False))
        return
    columns = TextColumn("{task.description}"), BarColumn(20)
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("compiling", total=None)

        def show(now: Progress, parts: list[str]) -> None:
            text = " · ".join(parts[:2]) + "\n" + " · ".join(parts[2:])
            bar.update(task, description=text, completed=now.round, total=now.rounds)

        yield Pace(_BAR_EVERY_S, show)


# ---- a run -----------------------------------------------------------------------------------


def show_record(console: Console, record: Record, updates_per_s: float = 0.0) -> None:
    """The results of a run and what it cost; the rate stands in no file, so it may be given."""
    if record.evaluations:
        console.print(_results(record), "")
    if record.online:
        console.print(_met_streams(record), "")
    facts = Table.grid(padding=(0, 2, 0, 0))
    for name, value in _facts(record):
        facts.add_row(f"[dim]{name}[/]", escape(value))
    if updates_per_s:
        facts.add_row("[dim]speed[/]", f"{updates_per_s:,.0f} updates/s of wall time")
    console.print(facts)


def _results(record: Record) -> Table:
    heads = [f"{m} {when}" for m in record.measures for when in _WHEN]
    table = _table("adapting as", "round", "devices", *heads)
    for name, points in record.evaluations.items():
        for point in points[:1] + points[1:][-1:]:
            values = [point.told(m, w) for m in record.measures for w in _WHEN]
            table.add_row(name, f"{point.round:,}", f"{point.row['devices']:,}", *values)
    return table


def _met_streams(record: Record) -> Table:
    in_percent = next(iter(record.online.values())).measure == "accuracy"
    heads = "since drift", "first domain", "new domain", "steps", "energy"
    table = _table("accuracy (%)" if in_percent else "loss", *heads)
    for name, met in record.online.items():
        domains = (
            " -> ".join(f"{met.value(f'{domain}_{when}')[0]:.3g}" for when in _WHEN)
            for domain in ("first", "new")
        )
        since = with_interval(*met.value("from_drift"))
        table.add_row(name, since, *domains, met.steps, si(met.row["adaptation_j"], "J"))
    return table


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    s, planned = record.summary, record.experiment["run"]["rounds"]
    failed = f", {s['failed_rounds']:,} failed" if s["failed_rounds"] else ""
    yield "rounds", f"{s['rounds']:,} of {planned:,}{failed}"
    yield "updates", f"{s['updates']:,} accepted, {s['refused']:,} refused"
    yield from (("", why) for why in record.refusals)
    yield "served" if record.is_deployed else "virtual time", format_time(s["time_s"])
    yield "bytes", f"{si(s['bytes_down'], 'B')} down, {si(s['bytes_up'], 'B')} up"
    if not record.is_deployed:
        yield "energy", si(s["energy_j"], "J")
    for profile in record.profiles:
        if profile["reasons"]:
            yield "do not fit", f"{profile['devices']:,} devices: {'; '.join(profile['reasons'])}"


# ---- before a run ----------------------------------------------------------------------------


def show_explained(console: Console, rows: Sequence[Row]) -> None:
    """What each profile needs, what a visit costs it, and the least budget that would do."""
    table = _table("", *(row.profile for row in rows))
    told = any(row.patches != 1 for row in rows)
    columns = [{"dtype": row.dtype, **_patches(row, told), **dict(_explained(row))} for row in rows]
    for name in max(columns, key=len):
        cells = (column.get(name, "-") for column in columns)
        table.add_row(name, *cells, end_section=name in _LAST)
    console.print(table, "")
    for row in rows:
        for reason in row.reasons:
            console.print(f"[red]does not fit:[/] {escape(reason)}", highlight=False)
    console.print("Which budget do I need? The least that would do:")
    for row in rows:
        least = f'ram = "{row.report["ram_bytes"]}B", flash = "{row.report["flash_bytes"]}B"'
        console.print(f"  {row.profile}: {least}", highlight=False, soft_wrap=True)


_LAST = ("plan", "RAM given", "flash given", "fits")
"""The last rows of the sections of what `show_explained` shows."""


def _patches(row: Row, told: bool) -> dict[str, str]:
    """Nothing, where no profile has some."""
    cut = f"{row.patches} x {row.patches}" if isinstance(row.patches, int) else row.patches
    return {"patches": "none" if row.patches == 1 else cut} if told else {}


def _explained(row: Row) -> Iterator[tuple[str, str]]:
    report = row.report
    yield "plan", escape(row.plan)
    for part, nbytes in ram_parts(report).items():
        yield part, f"{nbytes:,} B"
    yield "RAM needed", f"{report['ram_bytes']:,} B"
    yield "RAM given", binary(row.ram_given_bytes)
    yield "flash needed", f"{report['flash_bytes']:,} B"
    yield "flash given", binary(row.flash_given_bytes)
    yield "share of devices", f"{100 * row.share:.3g} %"
    yield "fits", "yes" if row.fits else "[red]no[/]"
    if not row.fits:
        return
    yield "time a visit", si(row.seconds, "s") if row.seconds < 60 else format_time(row.seconds)
    yield "energy a visit", si(row.joules, "J")
    yield "bytes a visit", f"{row.visit_bytes:,} B"
    yield "bytes of the run", si(row.run_bytes, "B")
    if row.pruning:
        yield from _pruning(row.pruning)
    if row.online:
        yield from _online(row.online)


def _online(cost: OnlineCost) -> Iterator[tuple[str, str]]:
    yield "online: RAM needed", f"{cost.report['ram_bytes']:,} B"
    yield "online: fits", "[red]no[/]" if cost.reasons else "yes"
    if not cost.reasons:
        yield "time a prediction", si(cost.prediction_s, "s")
        yield "time a step", si(cost.step_s, "s")
        yield "energy a step", si(cost.step_j, "J")


def _pruning(p: Pruning) -> Iterator[tuple[str, str]]:
    yield "density", percent(p.density)
    yield "live weights", f"{p.live_values:,}"
    yield "bytes down", f"{p.down_bytes:,} B"
    yield "bytes up", f"{p.up_bytes:,} B"
    yield "a mask that moved", f"+{p.mask_bytes:,} B"
    yield "rounds of selection", f"{p.selections:,}"
    yield "a visit of theirs", f"{p.selection_bytes:,} B"
    yield "rounds of growth", f"{p.growths:,}"
    yield "weights they find", f"{p.growth_places:,}"
    yield "their update", f"{p.growth_up_bytes:,} B"
    yield "a dense gradient", f"{p.gradient_bytes:,} B"
    yield "dense: RAM needed", f"{p.dense_ram_bytes:,} B"
    yield "dense: a visit", f"{p.dense_visit_bytes:,} B"
    yield "dense: the run", si(p.dense_run_bytes, "B")


def _table(first: str, *columns: str) -> Table:
    table = Table(first, box=SIMPLE, show_edge=False, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    return table

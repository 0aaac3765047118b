"""What the operator of a fleet sees in the terminal: how it stands, as tables and lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from fedtiny.report.units import binary, measured, percent, si
from fedtiny.simulator.clock import format_time

if TYPE_CHECKING:
    from rich.console import Console

    from fedtiny.server.doctor import Finding

Document = Mapping[str, Any]

MOST_ROWS = 200
"""Rows of a table: a terminal's history holds them, and rich draws them in a blink."""
_LINE_EVERY_S, _NEWS_EVERY_S = 30.0, 2.0
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


# ---- a coordinator that runs -----------------------------------------------------------------


def started_lines(status: Document) -> Iterator[str]:
    """Where a coordinator serves what, and what to do next."""
    lock = "without certificates" if status["insecure"] else "with certificates"
    yield f"serving devices at {status['listen']} ({lock}), enrolment at {status['enrol']}"
    yield f"folder: {status['folder']}"
    for run in status["runs"]:
        yield f"run {run['name']}: round {run['round']:,} of {run['rounds']:,}"
    yield f"let a device join: fedtiny token create --dir {status['folder']}"


def progress_line(run: Document, connected: int) -> str:
    """One run: where it stands, what it waits for, and until when."""
    parts = [
        run["name"],
        f"round {run['round']:,}/{run['rounds']:,}",
        f"{run['updates']:,} updates",
        f"{connected:,} device{'' if connected == 1 else 's'} connected",
        f"waits for {_waiting(run)}",
    ]
    if run["left_s"]:
        parts.append(f"{format_time(run['left_s'])} left")
    return " · ".join(parts)


def _waiting(run: Document) -> str:
    until = run["until_s"]
    return str(run["waits_for"]) + ("" if until is None else f", at most {format_time(until)}")


@dataclass
class Progress:
    """Shows how a coordinator goes: soon when a round is over, else now and then."""

    show: Callable[[str], None]
    now: Callable[[], float] = time.monotonic
    _shown: dict[str, tuple[float, tuple[Any, ...]]] = field(default_factory=dict)

    def take(self, status: Document) -> None:
        """The coordinator stands like this now."""
        if not self._shown:
            for line in started_lines(status):
                self.show(line)
        connected = status["devices"]["connected"]
        for run in status["runs"]:
            if self._is_news(run, connected):
                self.show(progress_line(run, connected))

    def _is_news(self, run: Document, connected: int) -> bool:
        news = run["round"], run["phase"], bool(connected)
        shown_s, last = self._shown.get(run["name"], (-_LINE_EVERY_S, ()))
        over, since_s = run["phase"] == "done", self.now() - shown_s
        if news == last:
            due = not over and since_s >= _LINE_EVERY_S
        else:
            due = over or since_s >= _NEWS_EVERY_S
        if due:
            self._shown[run["name"]] = self.now(), news
        return due


# ---- status ----------------------------------------------------------------------------------


def show_status(console: Console, status: Document) -> None:
    """The coordinator, then each of its runs."""
    _show_facts(console, _coordinator_facts(status))
    for run in status["runs"]:
        console.print()
        _show_facts(console, _run_facts(run))


def _coordinator_facts(status: Document) -> Iterator[tuple[str, str]]:
    devices = status["devices"]
    state = ", stopping" if status["draining"] else ""
    yield "coordinator", f"fedtiny {status['version']}, process {status['pid']}{state}"
    yield "folder", status["folder"]
    yield "devices at", status["listen"] + (", without certificates" * status["insecure"])
    yield "enrolment at", status["enrol"]
    if status["metrics"]:
        yield "metrics at", status["metrics"]
    yield "served", format_time(status["served_s"])
    if status["failure"]:
        yield "last failure", status["failure"]
    yield (
        "devices",
        f"{devices['joined']:,} joined, {devices['connected']:,} connected, "
        f"{devices['working']:,} at work, {devices['revoked']:,} revoked",
    )


def _run_facts(run: Document) -> Iterator[tuple[str, str]]:
    yield "run", run["name"]
    failed = f", {run['failed_rounds']:,} failed" if run["failed_rounds"] else ""
    yield "round", f"{run['round']:,} of {run['rounds']:,}{failed}; model {run['version']:,}"
    yield "waits for", _waiting(run)
    if run["left_s"]:
        yield "left", format_time(run["left_s"])
    yield (
        "updates",
        f"{run['updates']:,} accepted, {run['refused']:,} refused, {run['late']:,} late",
    )
    for why in sorted(run["reasons"].values(), key=lambda why: -int(why["count"])):
        yield "", f"{why['count']:,} refused, such as for: {why['example']}"
    if run["drop_out"]:
        yield "drop-out", percent(run["drop_out"])
    yield "bytes", f"{si(run['bytes_down'], 'B')} down, {si(run['bytes_up'], 'B')} up"
    if run["loss"] is not None:
        yield "training loss", f"{run['loss']:.4g}"
    for name, row in run["evaluations"].items():
        yield "judged", f"{name}: {_judged(row)}"


def _judged(row: Document) -> str:
    what = "accuracy" if "accuracy_after" in row else "loss"
    where = f"round {row['round']:,}, {row['devices']:,} device{'s' * (row['devices'] != 1)}"
    if row[f"{what}_after"] is None:
        return f"diverged ({where})"
    told = measured(what, row[f"{what}_after"], row[f"{what}_after_ci"] or 0.0)
    return f"{what} {told} ({where})"


# ---- lists -----------------------------------------------------------------------------------


def show_devices(console: Console, document: Document) -> None:
    """One line a device, and why some can run nothing."""
    rows = document["devices"]
    if not rows:
        return _line(console, "no device has joined; let one join: fedtiny token create")
    shown = sorted(rows, key=lambda row: -row["seen_s"])[:MOST_ROWS]
    table = _table("", "name", "state", "board", "RAM", "agent", "last seen")
    for row in sorted(shown, key=lambda row: int(row["index"])):
        seen = _ago(row["seen_s"])
        ram = binary(row["ram_bytes"])
        state = f"works on {row['run']}" if row["state"] == "working" else row["state"]
        cells = str(row["index"]), row["name"], state, row["profile"], ram, row["agent"], seen
        table.add_row(*map(escape, cells))
    console.print(table)
    for row in shown:
        for run, reasons in row["misfits"].items() if row["state"] != "revoked" else ():
            _line(console, escape(f"{row['name']} cannot take part in {run}: {'; '.join(reasons)}"))
    if len(rows) > MOST_ROWS:
        _line(console, f"these are the {MOST_ROWS:,} seen last of {len(rows):,}; --json lists all")


def show_runs(console: Console, document: Document) -> None:
    """One line a run."""
    table = _table("run", "served", "rounds", "model", "begun", "experiment")
    for row in document["runs"]:
        table.add_row(
            escape(row["name"]),
            "yes" if row["served"] else "no",
            f"{row['rounds_committed']:,}",
            "-" if row["version"] is None else f"{row['version']:,}",
            _ago(row["started_s"]),
            row["experiment"][:12],
        )
    console.print(table)


def show_models(console: Console, document: Document) -> None:
    """One line a model."""
    rows = document["models"]
    table = _table("version", "round", "published", "SHA-256", "")
    for row in rows[-MOST_ROWS:]:
        round = "-" if row["round"] is None else f"{row['round']:,}"
        current = "current" if row["current"] else ""
        published = _ago(row["made_s"])
        table.add_row(f"{row['version']:,}", round, published, row["digest"][:16], current)
    console.print(table)
    if len(rows) > MOST_ROWS:
        _line(console, f"these are the last {MOST_ROWS:,} of {len(rows):,}; --json lists all")


def revoked_line(document: Document) -> str:
    """That a device is shut out; where it was already, who else may have been meant."""
    which = f"device {document['index']} ({document['name']})"
    if not document["already"]:
        return f"{which} is shut out"
    told = f"{which} was shut out already, {_ago(document['revoked_s'])}"
    others = document["namesakes"]
    apart = "are other devices" if len(others) > 1 else "is another device"
    return f"{told}; {', '.join(others)} {apart}" if others else told


def show_tokens(console: Console, document: Document) -> None:
    """One line a token."""
    if not document["tokens"]:
        return _line(console, "no device can join now; make a token: fedtiny token create")
    table = _table("id", "label", "uses left", "expires in")
    for row in document["tokens"]:
        left = format_time(max(0.0, row["expires_s"] - time.time()))
        table.add_row(row["id"], escape(row["label"]), f"{row['uses_left']:,}", left)
    console.print(table)


def show_finding(console: Console, finding: Finding) -> None:
    """One line, and one below it that says what to do."""
    colour = _COLOURS[finding.state]
    _line(console, f"[{colour}]{finding.state:<4}[/]  {finding.check}: {escape(finding.told)}")
    if finding.remedy:
        _line(console, f"      {escape(finding.remedy)}")


# ---- how ------------------------------------------------------------------------------------


def _ago(unix_s: float) -> str:
    return f"{format_time(max(0.0, time.time() - unix_s))} ago"


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _show_facts(console: Console, facts: Iterator[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in facts:
        table.add_row(f"[dim]{name}[/]", escape(value))
    console.print(table)


def _table(*columns: str) -> Table:
    return Table(*columns, box=SIMPLE, show_edge=False, header_style="dim", pad_edge=False)

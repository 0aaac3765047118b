"""``fedtiny strategies``: what there is to choose from, and what goes with what."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedtiny.layout import LOCAL
from fedtiny.transforms.table import TABLE as TRANSFORMS
from fedtiny.transforms.table import usage
from fedtiny.values import CALIBRATE, EVALUATE, SCORE, SUMS, TRAIN, Sgd

if TYPE_CHECKING:
    from fedtiny.experiment.catalogue import Entry, Parameter
    from fedtiny.experiment.rules import Rule
    from fedtiny.experiment.workload import Workload
    from fedtiny.values import Instruction, Phase

_NEEDS = {
    "sum": "the sum of the updates: memory for one model, whatever the cohort",
    "all": "every update of a round: memory for a cohort of models",
}
_KINDS = {
    EVALUATE: "measures the model",
    CALIBRATE: "measures candidates",
    SCORE: "measures candidates",
    SUMS: "passes its samples through the model",
}
_SHADES = {"error": "red", "warning": "yellow", "fine": "green"}


def strategies(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="One of them, or MODULE:OBJECT for your own.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """List the strategies; of one, say its paper, its needs, parameters and conflicts."""
    from fedtiny.experiment.catalogue import Entry, entries
    from fedtiny.testing.trial import workload

    # At the end, as for an experiment: a file here must not hide an installed module.
    sys.path.append("")
    if name:
        entry = Entry.of(name)
        # What has no default is the user's to give: then nobody knows yet what it asks.
        work = None if entry.required else workload({"build": entry.build})
        return _print(_document(entry, work)) if as_json else _show(Console(), entry, work)
    if as_json:
        return _print(
            {
                "strategies": [_summary(entry) for entry in entries()],
                "transforms": {usage(name): row.does for name, row in TRANSFORMS.items()},
            }
        )
    _show_all(Console(), entries())


def _print(document: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(document, default=repr))


# ---- all of them -----------------------------------------------------------------------------


def _summary(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "build": entry.build,
        "summary": entry.summary,
        "paper": asdict(entry.paper) if entry.paper else None,
    }


def _show_all(console: Console, found: Iterable[Entry]) -> None:
    table = _table("strategy", "", "paper")
    for entry in found:
        paper = entry.paper.short if entry.paper else ""
        table.add_row(entry.name, escape(entry.summary), f"[dim]{paper}[/]")
    _say(console, table)
    table = _table("transform", "what a device does to its delta before it sends it")
    for name, row in TRANSFORMS.items():
        table.add_row(usage(name), row.does)
    _say(console, table)
    _say(
        console,
        "More about one: fedtiny strategies NAME. So are your own, as MODULE:OBJECT, and those of\n"
        "Flower, such as flwr.serverapp.strategy:Krum.",
    )


# ---- one of them -----------------------------------------------------------------------------


def _document(entry: Entry, work: Workload | None) -> dict[str, Any]:
    return {
        **_summary(entry),
        "needs": work.strategy.needs if work else None,
        "asks": dict(_asks(work)) if work else None,
        "parameters": [asdict(parameter) for parameter in entry.parameters],
        "conflicts": [
            {"with": r.other.words, "severity": r.severity, "reason": r.reason, "remedy": r.remedy}
            for r in _rules(work)
        ]
        if work
        else None,
    }


def _show(console: Console, entry: Entry, work: Workload | None) -> None:
    build = f"  [dim]{escape(entry.build)}[/]" if entry.build != entry.name else ""
    _say(console, f"[bold]{escape(entry.name)}[/]{build}")
    _say_page(console, entry.page)
    if work:
        _say(console, _facts(work))
    _say(console, _parameters(entry.parameters))
    if not work:
        given = ", ".join(entry.required)
        unknown = f"What it asks of a device, and what it goes with, depends on {given}."
        return _say_page(console, f"{unknown} fedtiny explain has it for an experiment.")
    rules = _rules(work)
    _say(console, _combinations(rules) if rules else "It goes with everything.")


def _say_page(console: Console, page: str) -> None:
    """Its paragraphs, filled to the width; what is indented or listed stays as it is."""
    for paragraph in page.split("\n\n"):
        lines = paragraph.split("\n")
        as_it_is = any(line[:1] in (" ", "-", "*") for line in lines)
        console.print(escape(paragraph if as_it_is else " ".join(lines)), highlight=False)
        console.print()


def _facts(work: Workload) -> Table:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_row("[dim]needs[/]", _NEEDS[work.strategy.needs])
    for fact, value in _asks(work):
        facts.add_row(f"[dim]{fact}[/]", value)
    return facts


def _rules(work: Workload) -> list[Rule]:
    """The rows about it, the worst first."""
    from fedtiny.experiment.rules import Case, conflicts

    return sorted(conflicts(Case.of(work)), key=lambda rule: list(_SHADES).index(rule.severity))


def _parameters(parameters: Iterable[Parameter]) -> Table:
    table = _table("parameter", "default", "")
    for parameter in parameters:
        default = json.dumps(parameter.default, default=repr)
        default = "to be given" if parameter.required else default
        table.add_row(parameter.name, escape(default), escape(parameter.meaning))
    return table


def _combinations(rules: Iterable[Rule]) -> Table:
    table = _table("together with", "", "because")
    for rule in rules:
        shade, told = _SHADES[rule.severity], rule.reason
        told += f"; {rule.remedy}" if rule.remedy else ""
        table.add_row(escape(rule.other.words), f"[{shade}]{rule.severity}[/]", escape(told))
    table.columns[0].no_wrap, table.columns[0].max_width = False, 24
    return table


# ---- what it asks of a device ----------------------------------------------------------------


def _asks(work: Workload) -> Iterator[tuple[str, str]]:
    """What a visit of the first round that trains is, and what it takes."""
    asked = work.training
    yield "a device", "; then ".join(map(_phase, asked.phases)) or _KINDS[asked.kind]
    yield "sends", _sent(asked)
    if kept := [words for holds, words in _kept(work) if holds]:
        yield "keeps", " and ".join(kept)
    yield "needs RAM for", f"its model and its training, and {_extra(work)}"


def _phase(phase: Phase) -> str:
    steps = "takes 1 step" if phase.steps == 1 else f"takes {phase.steps:,} steps"
    steps = steps if phase.steps else "trains on each of its samples once"
    *some, last = phase.groups or ("",)
    groups = f"{', '.join(some)} and {last}" if some else last
    whose = f", the {groups} parameters alone" if groups else ""
    return f"{steps}{whose}{', each with a look ahead' if phase.ahead else ''}"


def _sent(asked: Instruction) -> str:
    if asked.sums:
        return "sums over its features"
    if asked.kind != TRAIN:
        return "counts and sums"
    what = "the gradient at the end" if asked.sends_gradient else "what it has trained"
    steps = " -> ".join(t.name for t in asked.transforms)
    return f"{what}, transformed: {steps}" if steps else what


def _kept(work: Workload) -> Iterator[tuple[bool, str]]:
    """What stays on it from visit to visit."""
    asked = work.training
    yield LOCAL in work.layout.groups, "its own values of the parameters that are not averaged"
    yield asked.control, "a control variate"
    yield bool(asked.own), "a model of its own"
    yield any(t.name == "feedback" for t in asked.transforms), "what its transforms leave out"


def _extra(work: Workload) -> str:
    """What the rounds take beside the model and plain gradient descent."""
    needed, plain = work.profiles[0].needed, work.fit(work.profiles[0].name, sgd=Sgd()).needed
    more = needed.report()["ram_bytes"] - plain.report()["ram_bytes"]
    return f"about {more / work.layout.size:.1f} B a parameter" if more else "nothing else"


# ---- printing --------------------------------------------------------------------------------


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE, show_edge=False, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column)
    table.columns[0].no_wrap = True
    return table


def _say(console: Console, what: object) -> None:
    """It, and an empty line; a text is never wrapped."""
    console.print(what, highlight=False, soft_wrap=isinstance(what, str))
    console.print()

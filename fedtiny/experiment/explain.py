"""What an experiment asks of each board profile, before anything runs: bytes, seconds, joules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedtiny.errors import BudgetError
from fedtiny.experiment import Experiment
from fedtiny.registry.cost import BoardColumns, visit_cost
from fedtiny.registry.match import misfits
from fedtiny.values import Footprint


@dataclass(frozen=True, slots=True)
class Visit:
    """What a strategy asks of a device in one visit."""

    macs: int
    samples: int
    download_bytes: int
    upload_bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """One profile: its bytes, and what a visit costs it, or why it is never chosen.

    ``ram_bytes`` and ``flash_bytes`` are needed; both are None when nothing could be compiled. The
    costs are 0 when the Program does not fit. ``run_bytes`` is what all devices of the profile
    carry in the whole run, when every visit is made and those that can take part share the visits.
    """

    profile: str
    share: float
    ram_given_bytes: int
    flash_given_bytes: int
    ram_bytes: int | None
    flash_bytes: int | None
    reasons: tuple[str, ...]
    seconds: float = 0.0
    joules: float = 0.0
    visit_bytes: int = 0
    run_bytes: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether devices of this profile can take part."""
        return not self.reasons


def explain(
    experiment: Experiment,
    compile_for: Callable[[str], Footprint],
    visit_of: Callable[[Footprint], Visit],
    cohort: int,
) -> list[Row]:
    """One row for each profile of the fleet.

    ``compile_for`` gives the Program of a profile, or raises BudgetError; ``visit_of`` says what
    the strategy asks of a device with that Program; ``cohort`` is the number of visits a round.
    """
    shares = experiment.fleet.profiles
    tried = {name: _fit(experiment, name, compile_for) for name in shares}
    able = sum(shares[name] for name, (_, reasons) in tried.items() if not reasons)
    return [
        _row(experiment, name, *tried[name], visit_of, experiment.run.rounds * cohort / (able or 1))
        for name in shares
    ]


_Fit = tuple[Footprint | None, tuple[str, ...]]


def _fit(experiment: Experiment, name: str, compile_for: Callable[[str], Footprint]) -> _Fit:
    try:
        footprint = compile_for(name)
    except BudgetError as error:
        return None, (str(error),)
    return footprint, misfits(footprint, experiment.profile(name).card())


def _row(
    experiment: Experiment,
    name: str,
    footprint: Footprint | None,
    reasons: tuple[str, ...],
    visit_of: Callable[[Footprint], Visit],
    visits: float,
) -> Row:
    budget, share = experiment.budget(name), experiment.fleet.profiles[name]
    given = budget.ram_bytes, budget.flash_bytes
    if footprint is None:
        return Row(name, share, *given, None, None, reasons)
    needed = footprint.ram_bytes, footprint.flash_bytes
    if reasons:
        return Row(name, share, *given, *needed, reasons)
    visit = visit_of(footprint)
    cost = visit_cost(
        BoardColumns.of([experiment.profile(name)]),
        macs=visit.macs,
        download_bytes=visit.download_bytes,
        upload_bytes=visit.upload_bytes,
        samples=visit.samples,
        sample_period_s=experiment.data.sample_period,
    )
    visit_bytes = visit.download_bytes + visit.upload_bytes
    return Row(
        *(name, share, *given, *needed, reasons),
        seconds=float(cost.seconds[0]),
        joules=float(cost.joules[0]),
        visit_bytes=visit_bytes,
        run_bytes=visits * share * visit_bytes,
    )

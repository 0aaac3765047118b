"""What an experiment asks of each board profile, before anything runs: bytes, seconds, joules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedtiny.engine.program import Program
from fedtiny.experiment.workload import Profile, Workload


@dataclass(frozen=True, slots=True)
class Row:
    """One profile: its bytes, and what a visit costs it, or why it is never chosen.

    ``report`` is that of the Program which was made, whether or not it fits. The costs are 0 when
    it does not. ``run_bytes`` is what all devices of the profile carry in the whole run, when every
    visit is made and those that can take part share the visits.
    """

    profile: str
    share: float
    ram_given_bytes: int
    flash_given_bytes: int
    report: Mapping[str, int]
    reasons: tuple[str, ...]
    seconds: float = 0.0
    joules: float = 0.0
    visit_bytes: int = 0
    run_bytes: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether devices of this profile can take part."""
        return not self.reasons


def explain(workload: Workload) -> list[Row]:
    """One row for each profile of the fleet."""
    experiment = workload.experiment
    shares = experiment.fleet.profiles
    able = sum(shares[profile.name] for profile in workload.profiles if profile.program)
    visits = experiment.run.rounds * workload.strategy.cohort / (able or 1)
    counts = {part: float(column.mean()) for part, column in workload.counts.items()}
    return [_row(workload, profile, counts, visits) for profile in workload.profiles]


def _row(workload: Workload, profile: Profile, counts: Mapping[str, float], visits: float) -> Row:
    experiment, name = workload.experiment, profile.name
    budget, share = experiment.budget(name), experiment.fleet.profiles[name]
    row = Row(
        profile=name,
        share=share,
        ram_given_bytes=budget.ram_bytes,
        flash_given_bytes=budget.flash_bytes,
        report=profile.needed.report(),
        reasons=profile.reasons,
    )
    return _with_costs(row, workload, profile.program, counts, visits) if profile.program else row


def _with_costs(
    row: Row, workload: Workload, program: Program, counts: Mapping[str, float], visits: float
) -> Row:
    cost = workload.cost(row.profile, program, counts)
    visit = workload.visit_bytes(program, workload.instruction)
    visit_bytes = visit.down + visit.up
    return replace(
        row,
        seconds=float(cost.seconds[0]),
        joules=float(cost.joules[0]),
        visit_bytes=visit_bytes,
        run_bytes=visits * row.share * visit_bytes,
    )

"""What an experiment asks of each board profile, before anything runs: bytes, seconds, joules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedtiny.engine.compile import build
from fedtiny.engine.program import Program
from fedtiny.experiment import rules
from fedtiny.experiment.asking import picks_masks
from fedtiny.experiment.online import instruction_of
from fedtiny.experiment.schema import Budget
from fedtiny.experiment.workload import Profile, Workload
from fedtiny.registry.cost import BoardColumns, visit_cost
from fedtiny.tensors import FLOAT_BYTES
from fedtiny.values import Instruction, Masks, Sgd
from fedtiny.wire.visit import VisitBytes


@dataclass(frozen=True, slots=True)
class Pruning:
    """What a density saves a profile, beside the same Program with all of its weights.

    ``selections`` are the rounds that try candidate masks, for which such a visit carries up to
    ``selection_bytes``, both ways: all weights of the model, and from the second on statistics.
    ``mask_bytes`` come on top of a visit whenever the mask has moved. ``growths`` are the rounds
    that look for weights to grow: such a visit sends up to ``growth_places`` of them, in up to
    ``growth_up_bytes``, where a dense gradient would be ``gradient_bytes``.
    """

    density: float
    live_values: int
    dense_ram_bytes: int
    down_bytes: int
    up_bytes: int
    mask_bytes: int
    selections: int
    selection_bytes: int
    growths: int
    growth_places: int
    growth_up_bytes: int
    gradient_bytes: int
    dense_visit_bytes: int
    dense_run_bytes: float


@dataclass(frozen=True, slots=True)
class OnlineCost:
    """What meeting a stream takes of a profile: a Program with a batch of one sample, and for each
    sample a prediction, and where the gate says so a step.

    The costs are 0 where the Program does not fit, for these ``reasons``.
    """

    report: Mapping[str, int]
    reasons: tuple[str, ...]
    prediction_s: float = 0.0
    step_s: float = 0.0
    prediction_j: float = 0.0
    step_j: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """One profile: its bytes, and what a visit costs it, or why it is never chosen.

    ``dtype``, ``plan`` and ``patches`` are those of the Program which was made, whether or not it
    fits, and ``report`` is its own. The costs are 0 when it does not. ``visit_bytes`` are those of
    a visit that trains, by a device that holds its mask; ``run_bytes`` is what all devices of the
    profile carry in the whole run, when every visit is made and those that can take part share the
    visits.
    """

    profile: str
    share: float
    dtype: str
    plan: str
    patches: int | str
    ram_given_bytes: int
    flash_given_bytes: int
    report: Mapping[str, int]
    reasons: tuple[str, ...]
    seconds: float = 0.0
    joules: float = 0.0
    visit_bytes: int = 0
    run_bytes: float = 0.0
    pruning: Pruning | None = None
    online: OnlineCost | None = None

    @property
    def fits(self) -> bool:
        """Whether devices of this profile can take part."""
        return not self.reasons


def explain(workload: Workload) -> list[Row]:
    """One row for each profile of the fleet; ExperimentError for what cannot be combined."""
    rules.check(workload)
    counts = {part: float(column.mean()) for part, column in workload.counts.items()}
    asked = list(workload.rehearsal()) if workload.prunes else []
    twins = _Twins(workload)
    rows = [_row(workload, profile, counts, asked, twins) for profile in workload.profiles]
    if not workload.experiment.online:
        return rows
    return [replace(row, online=_online(workload, row.profile)) for row in rows]


def _row(
    workload: Workload,
    profile: Profile,
    counts: Mapping[str, float],
    asked: Sequence[Instruction],
    twins: _Twins,
) -> Row:
    experiment, name = workload.experiment, profile.name
    budget, share = workload.budget(name), experiment.fleet.profiles[name]
    row = Row(
        profile=name,
        share=share,
        dtype=budget.dtype,
        plan=budget.plan,
        patches=budget.patches,
        ram_given_bytes=budget.ram_bytes,
        flash_given_bytes=budget.flash_bytes,
        report=profile.needed.report(),
        reasons=profile.reasons,
    )
    program = profile.program
    if program is None:
        return row
    row = _with_costs(row, workload, program, counts)
    if program.density == 1:
        return row
    return _with_pruning(row, workload, program, asked, twins.of(budget))


def _online(workload: Workload, name: str) -> OnlineCost:
    """Of all streams together: they differ in what they reserve at most."""
    asked = map(instruction_of, workload.experiment.online.values())
    sgd = Sgd(clip=max(one.phases[0].sgd.clip for one in asked))
    fitted = workload.fit(name, 1, sgd)
    report = fitted.needed.report()
    if fitted.reasons:
        return OnlineCost(report, fitted.reasons)
    macs = report["macs_per_forward"], report["macs_per_step"]
    boards = BoardColumns.of([workload.experiment.profile(name)] * len(macs))
    cost = visit_cost(boards, macs=macs, download_bytes=0, upload_bytes=0)
    return OnlineCost(report, (), *cost.compute_s.tolist(), *cost.joules.tolist())


def _with_costs(row: Row, workload: Workload, program: Program, counts: Mapping[str, float]) -> Row:
    cost = workload.cost(row.profile, program, counts)
    visit = _held(workload.visit_bytes(program, workload.training))
    return replace(
        row,
        seconds=float(cost.seconds[0]),
        joules=float(cost.joules[0]),
        visit_bytes=_both(visit),
        run_bytes=workload.experiment.run.rounds * _visits(workload, row) * _both(visit),
    )


def _with_pruning(
    row: Row, workload: Workload, program: Program, asked: Sequence[Instruction], dense: Program
) -> Row:
    each = [workload.visit_bytes(program, one) for one in asked]
    trains = workload.visit_bytes(program, workload.training)
    growths = [(one, visit) for one, visit in zip(asked, each, strict=True) if one.grow]
    selections = [_both(v) for one, v in zip(asked, each, strict=True) if picks_masks(one)]
    dense_bytes = _both(workload.visit_bytes(dense, replace(workload.training, masks=())))
    visits = _visits(workload, row)
    pruning = Pruning(
        density=program.density,
        live_values=program.capacity,
        dense_ram_bytes=dense.report()["ram_bytes"],
        down_bytes=_held(trains).down,
        up_bytes=_held(trains).up,
        mask_bytes=max(map(_fetch, each)),
        selections=len(selections),
        selection_bytes=max(selections, default=0),
        growths=len(growths),
        growth_places=max((sum(k for _, k in one.grow) for one, _ in growths), default=0),
        growth_up_bytes=max((visit.update for _, visit in growths), default=0),
        gradient_bytes=FLOAT_BYTES * workload.layout.size,
        dense_visit_bytes=dense_bytes,
        dense_run_bytes=len(asked) * visits * dense_bytes,
    )
    run_bytes = visits * sum(_both(_held(visit)) for visit in each)
    run_bytes += _masks_bytes(workload, row, asked, each)
    return replace(row, run_bytes=run_bytes, pruning=pruning)


@dataclass(frozen=True)
class _Twins:
    """The Programs with all weights; profiles that differ in density alone share theirs."""

    workload: Workload
    made: dict[Budget, Program] = field(default_factory=dict)

    def of(self, budget: Budget) -> Program:
        """The one for a budget, whether or not it fits."""
        key = replace(budget, ram_bytes=0, flash_bytes=0, density=1.0)
        if key not in self.made:
            self.made[key] = build(
                self.workload.net, loss=self.workload.loss, batch=budget.batch, plan=budget.plan,
                sgd=self.workload.reserved, reserve=budget.reserve_bytes,
            ).program  # fmt: skip
        return self.made[key]


def _able(workload: Workload) -> float:
    """The share of the devices that can take part."""
    shares = workload.experiment.fleet.profiles
    return sum(shares[profile.name] for profile in workload.profiles if profile.program) or 1.0


def _visits(workload: Workload, row: Row) -> float:
    """Of the profile in a round."""
    return workload.strategy.cohort * row.share / _able(workload)


def _masks_bytes(
    workload: Workload, row: Row, asked: Iterable[Instruction], each: Iterable[VisitBytes]
) -> float:
    """Of fetching masks, in expectation: a device that is asked does it once while a mask stays."""
    experiment = workload.experiment
    devices = row.share * (experiment.fleet.devices - experiment.held_out)
    idle = max(0.0, 1.0 - _visits(workload, row) / devices) if devices else 1.0
    stays: Counter[tuple[int, Masks, int]] = Counter()
    grown = 0  # in the rehearsal nothing grows; in a run each growth moves the mask
    for one, visit in zip(asked, each, strict=True):
        stays[grown, one.masks, _fetch(visit)] += 1
        grown += bool(one.grow)
    return sum(devices * (1.0 - idle**n) * nbytes for (_, _, nbytes), n in stays.items())


def _fetch(visit: VisitBytes) -> int:
    """What fetching the mask takes."""
    return visit.mask + visit.mask_requests


def _held(visit: VisitBytes) -> VisitBytes:
    """The visit of a device that holds the mask."""
    return visit._replace(mask=0, mask_requests=0)


def _both(visit: VisitBytes) -> int:
    return visit.down + visit.up

"""``plan = "auto"`` of an experiment: found from its public samples and the model it starts from.

The search is a function of the experiment alone, so that a coordinator, a simulator and a run that
goes on find the same plan. It is remembered as long as the process lives.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from fedtiny.planning.contribution import fisher_information, warmed
from fedtiny.planning.measuring import Rehearsal, measured_gains
from fedtiny.planning.search import Found, Limits, Result, search
from fedtiny.update_plan import AUTO
from fedtiny.values import QUERY, SUPPORT

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedtiny.data.partitions import Partition
    from fedtiny.data.tables import Samples
    from fedtiny.experiment import Experiment
    from fedtiny.experiment.schema import Budget
    from fedtiny.experiment.workload import Workload
    from fedtiny.planning.contribution import Contributions

_TRANSFER = 0.5
"""The share of a deadline that is left for the link."""
SHOWN = 8
"""Plans that are tried."""


def searched(experiment: Experiment) -> list[str]:
    """The profiles whose plan is to be found."""
    return [name for name in experiment.fleet.profiles if experiment.budget(name).plan == AUTO]


def public_samples(work: Workload) -> Samples:
    """Those by which plans are judged."""
    return cast("Partition", work.task).public_samples(work.experiment.seed)


def found_budget(work: Workload, name: str) -> Budget:
    """The budget of a profile, with a plan that was found where it asks for one."""
    budget = work.experiment.budget(name)
    if budget.plan != AUTO:
        return budget
    return replace(budget, plan=found(work, name).best.plan)


def found(work: Workload, name: str) -> Result:
    """What the search of a profile finds."""
    budget, limits = work.experiment.budget(name), _limits(work, name)
    return _search(_Question(work.experiment.digest, budget, limits, name, work))


def contributions(work: Workload) -> Contributions:
    """What each coordinate of the first model would add, by the public samples."""
    return _contributions(_Model(work.experiment.digest, work))


@dataclass(frozen=True)
class _Question:
    """What decides a plan; the work answers it."""

    digest: str
    budget: Budget
    limits: Limits
    name: str = field(compare=False)
    work: Workload = field(compare=False)


@dataclass(frozen=True)
class _Model:
    """What decides contributions."""

    digest: str
    work: Workload = field(compare=False)


# ---- trying them -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judged:
    """A plan, and how a model does that was trained by it for a short time; ``accuracy`` is None
    where labels are no classes."""

    found: Found
    loss: float
    accuracy: float | None


def planned(
    experiment: Experiment,
    name: str,
    measure: bool = False,
    progress: Callable[[str], None] = lambda told: None,
) -> tuple[Judged, ...]:
    """The plans of a profile than which no other gives more for less, the best one last.

    Args:
        experiment: The experiment, whatever plan it names.
        name: The profile.
        measure: Whether contributions are measured by training.
        progress: Told what is done.

    Raises ExperimentError without public samples, and BudgetError where nothing fits.
    """
    key = ".".join(("device", *([name] if "plan" in experiment.boards.get(name, {}) else [])))
    work = _work_of(experiment.override(f"{key}.plan={AUTO}"))
    progress("gradients of the public samples")
    squares, rehearsal = contributions(work), _rehearsal(work, name)
    if measure:
        squares = measured_gains(
            rehearsal, squares, lambda at, of: progress(f"{at} of {of} parameters measured")
        )
    result = _searched(work, name, squares, lambda tried: progress(f"{tried} plans compiled"))
    shown = _thinned(result)
    judged = []
    for at, one in enumerate(shown, 1):
        progress(f"training {at} of {len(shown)} plans")
        scores = rehearsal.scores(one.plan)
        accuracy = None if work.task.classes is None else scores["accuracy"]
        judged.append(Judged(one, scores["loss"], accuracy))
    return tuple(judged)


def _thinned(result: Result) -> list[Found]:
    """At most `SHOWN` plans of the frontier, with the first one, and the best one last."""
    frontier = [found for found in result.frontier if found != result.best]
    step = max(1.0, (len(frontier) - 1) / max(1, SHOWN - 2))
    chosen = {round(at * step) for at in range(SHOWN - 1)}
    return [*(found for at, found in enumerate(frontier) if at in chosen), result.best]


def _rehearsal(work: Workload, name: str) -> Rehearsal:
    options = _compiled(work, name)
    return Rehearsal.of(work.net, work.initial, public_samples(work), options)


def _work_of(experiment: Experiment) -> Workload:
    from fedtiny.experiment.workload import Workload  # which resolves plans by this module

    return Workload.of(experiment)


# ---- searching -------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _search(asked: _Question) -> Result:
    return _searched(asked.work, asked.name, contributions(asked.work))


def _searched(
    work: Workload,
    name: str,
    squares: Contributions,
    progress: Callable[[int], None] = lambda tried: None,
) -> Result:
    return search(
        work.net, squares, _limits(work, name), seed=work.experiment.seed, progress=progress,
        **_compiled(work, name),
    )  # fmt: skip


def _compiled(work: Workload, name: str) -> dict[str, Any]:
    """What a profile's Program is compiled with, but for its plan."""
    options = work.options(work.experiment.budget(name))
    return {key: value for key, value in options.items() if key != "plan"}


def _limits(work: Workload, name: str) -> Limits:
    budget = work.experiment.budget(name)
    return Limits(budget.ram_bytes, budget.flash_bytes, _macs_per_step(work, name))


@lru_cache(maxsize=4)
def _contributions(model: _Model) -> Contributions:
    work, public = model.work, public_samples(model.work)
    ranged = work.quantises
    start = warmed(work.net, work.initial, *public, work.loss, quantisable=ranged)
    return fisher_information(work.net, start, *public, work.loss, quantisable=ranged)


def _macs_per_step(work: Workload, name: str) -> int:
    """So many that the shortest visit ends in time, with what the link takes."""
    support = work.counts[SUPPORT]
    least = int(support[support > 0].min()) if support.any() else 1
    counts, batch = {SUPPORT: least, QUERY: 1}, work.experiment.budget(name).batch
    steps, _ = work.training.used(counts, batch)
    board, deadline_s = work.experiment.profile(name), work.experiment.run.deadline
    return max(1, int(_TRANSFER * deadline_s * board.macs_per_s / max(1, int(steps))))

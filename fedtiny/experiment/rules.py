"""THE table of combinations: what does not go together, what is doubtful, and what is fine.

A row names two traits, of a strategy and its transforms, of the fleet or of the run, and says why
they do or do not go together and what to do instead. `check` holds a run against the table before
it starts; `conflicts` gives the rows that concern one strategy, whatever the run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedtiny.experiment.reading import Keys
from fedtiny.layout import LOCAL
from fedtiny.strategies.krum import Krum
from fedtiny.strategies.pruned import Pruned
from fedtiny.strategies.robust import Robust
from fedtiny.strategies.tinyreptile import TinyReptile
from fedtiny.transforms.table import CLIPS, find
from fedtiny.values import SUMS

if TYPE_CHECKING:
    from fedtiny.errors import ExperimentError
    from fedtiny.experiment import Experiment
    from fedtiny.experiment.workload import Workload
    from fedtiny.layout import Layout
    from fedtiny.strategies.base import Strategy
    from fedtiny.values import Instruction

ERROR, WARNING, FINE = "error", "warning", "fine"

OFTEN = 2.0
"""Visits that a device must make in a run for what it keeps between them to be of any use."""


class RuleWarning(UserWarning):
    """A combination that runs, and hardly does what it is meant to."""


# ---- what is judged --------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A strategy, what its first round that trains asks, the layout, and what else the file says.

    ``deployed``: real devices are to carry it out.
    """

    strategy: Strategy
    asked: Instruction
    layout: Layout
    experiment: Experiment
    deployed: bool = False

    @classmethod
    def of(cls, work: Workload, deployed: bool = False) -> Case:
        """That of an experiment."""
        return cls(work.strategy, work.training, work.layout, work.experiment, deployed)

    def sends(self, *names: str) -> bool:
        """Whether one of these transforms is asked for."""
        return any(transform.name in names for transform in self.asked.transforms)

    @property
    def training(self) -> int:
        """Devices that may be asked to train."""
        return self.experiment.fleet.devices - self.experiment.held_out

    @property
    def visits(self) -> float:
        """Of one device in the run, in the mean."""
        return self.experiment.run.rounds * self.strategy.cohort / self.training


@dataclass(frozen=True)
class Trait:
    """Something that a run has or has not, in words, and where an experiment says so."""

    words: str
    keys: Keys
    holds: Callable[[Case], bool]


@dataclass(frozen=True)
class Rule:
    """One row: two traits, and what becomes of them together."""

    one: Trait
    other: Trait
    severity: str
    reason: str
    remedy: str = ""

    def holds(self, case: Case) -> bool:
        """Whether the case has both traits."""
        return self.one.holds(case) and self.other.holds(case)

    def __str__(self) -> str:
        told = f"{self.one.words} with {self.other.words}: {self.reason}"
        return f"{told}; {self.remedy}" if self.remedy else told


# ---- traits ----------------------------------------------------------------------------------

_NAME, _TRANSFORMS = ("strategy", "name"), ("strategy", "transforms")
_FLOWERS_ROBUST = ("Krum", "MultiKrum", "Bulyan", "FedMedian", "FedTrimmedAvg")


def _is_robust(case: Case) -> bool:
    theirs = str(getattr(case.strategy, "reference", "")).rpartition(":")[2]
    return isinstance(case.strategy, Robust) or theirs in _FLOWERS_ROBUST


def _suspects(case: Case) -> int:
    """Devices of a cohort that may end in quarantine at once."""
    return case.strategy.byzantine if isinstance(case.strategy, Krum) else 1


def _bars_too_many(case: Case) -> bool:
    return case.strategy.cohort > case.training - _suspects(case)


def _may_close_early(case: Case) -> bool:
    fleet, needed = case.experiment.fleet, 2 * _suspects(case) + 3
    loses = case.deployed or fleet.drop_out > 0 or fleet.availability != "always"
    return loses and case.experiment.run.minimum < needed


def _judges_strangers(case: Case) -> bool:
    return not all(one.trained for one in case.experiment.evaluate.values())


def _bounds_clipped(case: Case) -> bool:
    clip = find(case.asked.transforms, CLIPS)
    return clip is not None and 0 < case.strategy.update_clip <= clip.figure


def _phases_lack_steps(case: Case) -> bool:
    return any(phase.steps == 0 for phase in case.asked.phases)


ROBUST = Trait("a robust rule", _NAME, _is_robust)
KRUM = Trait("Krum", _NAME, lambda c: isinstance(c.strategy, Krum))
QUARANTINE = Trait(
    "quarantine", ("strategy", "quarantine"), lambda c: getattr(c.strategy, "quarantine", 0) > 0
)
ASYNCHRONOUS = Trait(
    "asynchronous rounds", ("strategy", "concurrency"), lambda c: c.strategy.asynchronous
)
EVERY_UPDATE = Trait('needs = "all"', _NAME, lambda c: c.strategy.needs == "all")
ONE_DEVICE = Trait("one device a round", ("strategy", "cohort"), lambda c: c.strategy.cohort == 1)
ONE_STREAM = Trait(
    "TinyReptile of one device", ("strategy", "cohort"),
    lambda c: isinstance(c.strategy, TinyReptile) and c.strategy.cohort == 1,
)  # fmt: skip
CONTROL = Trait("control variates", _NAME, lambda c: c.asked.control)
GATED = Trait("a gate", ("run", "gate"), lambda c: c.experiment.run.gate > 0)
OWN = Trait("models of the devices' own", _NAME, lambda c: bool(c.asked.own))
LOCALS = Trait("parameters that stay on the device", _NAME, lambda c: LOCAL in c.layout.groups)
PRUNES = Trait("a strategy that prunes", _NAME, lambda c: isinstance(c.strategy, Pruned))
SUMMED = Trait("sums of features", _NAME, lambda c: c.asked.kind == SUMS)

TRANSFORMS = Trait("transforms", _TRANSFORMS, lambda c: bool(c.strategy.transforms))
TIGHT_BOUND = Trait(
    "an update_clip that is no larger than the clip", ("strategy", "update_clip"), _bounds_clipped
)
TOPK = Trait("topk", _TRANSFORMS, lambda c: c.sends("topk"))
RANDOMK = Trait("randomk", _TRANSFORMS, lambda c: c.sends("randomk"))
ROUNDED = Trait("int8 or qsgd", _TRANSFORMS, lambda c: c.sends("int8", "qsgd"))
SIGN = Trait("sign", _TRANSFORMS, lambda c: c.sends("sign"))
NOISE = Trait("noise", _TRANSFORMS, lambda c: c.sends("noise"))
FEEDBACK = Trait("feedback", _TRANSFORMS, lambda c: c.sends("feedback"))
NO_FEEDBACK = Trait("no feedback", _TRANSFORMS, lambda c: not c.sends("feedback"))
NO_CLIP = Trait("no clip", _TRANSFORMS, lambda c: not c.sends("clip"))
LENGTHENS = Trait(
    "noise, feedback, int8 or qsgd", _TRANSFORMS,
    lambda c: c.sends("noise", "feedback", "int8", "qsgd"),
)  # fmt: skip
BIASED = Trait(
    "clip, topk, randomk or sign", _TRANSFORMS,
    lambda c: c.sends("clip", "topk", "randomk", "sign"),
)  # fmt: skip
BY_PLACE = Trait("randomk or feedback", _TRANSFORMS, lambda c: c.sends("randomk", "feedback"))

WHOLE_PASSES = Trait("steps = 0", ("strategy", "steps"), _phases_lack_steps)
MOMENTUM = Trait(
    "momentum", ("strategy", "momentum"), lambda c: any(p.sgd.momentum for p in c.asked.phases)
)
PRUNED = Trait("pruned Programs", ("device", "density"), lambda c: c.experiment.densities[0] < 1)
TRACKED = Trait(
    "batch normalisation that tracks its statistics", ("model",),
    lambda c: c.layout.statistics_floats > 0,
)  # fmt: skip
RARE_VISITS = Trait(
    "devices that come less than twice", ("run", "rounds"), lambda c: c.visits < OFTEN
)
MEMBERS = Trait(
    "evaluation on devices that train", ("evaluate",),
    lambda c: any(one.trained for one in c.experiment.evaluate.values()),
)  # fmt: skip
STRANGERS = Trait("evaluation on held-out devices", ("evaluate",), _judges_strangers)
TOO_FEW_LEFT = Trait("a cohort of nearly all devices", ("strategy", "cohort"), _bars_too_many)
EARLY_END = Trait(
    "rounds of fewer than 2 byzantine + 3 updates", ("run", "minimum"), _may_close_early
)
OVER_SELECTION = Trait(
    "over-selection", ("run", "over_selection"), lambda c: c.experiment.run.over_selection != 1
)
SEEDED = Trait("seeded = true", ("seeded",), lambda c: c.experiment.seeded)
ATTACK = Trait("an [attack]", ("attack",), lambda c: c.experiment.attack is not None)
ONLINE = Trait("streams after the last round", ("online",), lambda c: bool(c.experiment.online))
DEPLOYED = Trait("real devices", (), lambda c: c.deployed)


# ---- the table -------------------------------------------------------------------------------

RULES: tuple[Rule, ...] = (
    Rule(
        ROBUST, TOPK, ERROR,
        "each device chooses its own coordinates, what it leaves out counts as not moved, and an "
        "honest minority that moves a coordinate looks like an attack",
        "take randomk:SHARE, the same coordinates on all devices",
    ),
    Rule(
        ROBUST, RANDOMK, FINE,
        "all devices send the same coordinates, so that their deltas can be compared",
    ),
    Rule(
        ROBUST, ROUNDED, FINE,
        "the error of rounding is far below the distance between honest devices",
    ),
    Rule(
        ROBUST, NOISE, WARNING,
        "the noise of a device lies between honest deltas as far as an attack that hides in it",
        "lower the noise, or clip and average (norm-bound)",
    ),
    Rule(
        ROBUST, FEEDBACK, WARNING,
        "a device that was not asked for long sends what it has kept back, and looks like a liar",
        "leave feedback out",
    ),
    Rule(
        KRUM, EARLY_END, WARNING,
        "a round that ends at its deadline with fewer updates follows those that lie",
        "set run.minimum to 2 byzantine + 3",
    ),
    Rule(
        QUARANTINE, TOO_FEW_LEFT, WARNING,
        "with a few devices barred no round is ever full: each one waits for its deadline",
        "lower the cohort, or take a larger fleet",
    ),
    Rule(
        ASYNCHRONOUS, EVERY_UPDATE, ERROR,
        "updates that start from different models are not comparable one by one",
        'fold their sum: needs = "sum"',
    ),
    Rule(
        ASYNCHRONOUS, PRUNED, ERROR,
        "a mask may move at each commit, while devices work under the one before",
        "set device.density = 1, or take a strategy of synchronous rounds",
    ),
    Rule(
        ASYNCHRONOUS, CONTROL, ERROR,
        "control variates of devices that start from different models do not sum up to the "
        "server's",
        "take a strategy of synchronous rounds",
    ),
    Rule(
        ASYNCHRONOUS, OVER_SELECTION, WARNING,
        "nobody waits for the slowest device: run.over_selection changes nothing",
        "set strategy.concurrency, and take run.over_selection out",
    ),
    Rule(
        ASYNCHRONOUS, SEEDED, WARNING,
        "which updates fill a buffer depends on when they arrive: served, the file makes another "
        "model than simulated",
        "take a strategy of synchronous rounds where the same model matters",
    ),
    Rule(
        CONTROL, WHOLE_PASSES, ERROR,
        "a pass is another number of steps K on each device, and the server's variate takes one K",
        "set strategy.steps to 1 or more",
    ),
    Rule(
        CONTROL, MOMENTUM, ERROR,
        "with momentum (x - y) / (K lr) is not the mean of K gradients, and variates grow without "
        "bound",
        "set strategy.momentum = 0",
    ),
    Rule(
        CONTROL, BIASED, WARNING,
        "the server's variate follows what is sent, and a device's own what it has trained: they "
        "drift apart",
        "take int8 or qsgd, which are right in the mean",
    ),
    Rule(CONTROL, ROUNDED, FINE, "what is sent is right in the mean"),
    Rule(
        CONTROL, GATED, WARNING,
        "of a round that the gate refuses devices keep what they learned, and the server does not: "
        "the variates drift apart",
        "set run.gate = 0, or take fedprox",
    ),
    Rule(
        CONTROL, RARE_VISITS, WARNING,
        "a variate is of use from the second visit on, and until then the correction is wrong",
        "take fedprox or fedavg, a larger cohort, or more rounds",
    ),
    Rule(
        OWN, RARE_VISITS, WARNING,
        "a model of one's own is trained from visit to visit, and there is hardly a second one",
        "take a larger cohort, or more rounds",
    ),
    Rule(
        FEEDBACK, RARE_VISITS, WARNING,
        "what is left out is added to the next delta, and there is hardly a next one",
        "leave feedback out, or take a larger cohort or more rounds",
    ),
    Rule(
        OWN, STRANGERS, WARNING,
        "a device that never trains has no model of its own: the shared one is judged",
        'set evaluate.NAME.devices = "training"',
    ),
    Rule(
        LOCALS, STRANGERS, WARNING,
        "a device that never trains adapts the first values of what stays on the device",
        'set evaluate.NAME.devices = "training"',
    ),
    Rule(
        PRUNES, BY_PLACE, ERROR,
        "both go by places of the whole model, and the mask of a device moves from round to round",
        "take topk",
    ),
    Rule(PRUNES, TOPK, FINE, "a device chooses among the weights that live on it"),
    Rule(
        SUMMED, PRUNED, ERROR,
        "features are read through the last layer, which a pruned Program has not as a whole",
        "set device.density = 1",
    ),
    Rule(
        SUMMED, TRANSFORMS, ERROR,
        "a device sends sums, which are exact, and no delta that could be transformed",
        "take transforms out",
    ),
    Rule(
        SIGN, NO_FEEDBACK, WARNING,
        "what the signs leave out is lost, and the same way each time",
        'put "feedback" before "sign"',
    ),
    Rule(
        TOPK, FEEDBACK, FINE, "what is left out is not lost: it adds up until it is sent"
    ),
    Rule(
        TIGHT_BOUND, LENGTHENS, WARNING,
        "what follows the clip makes a delta longer than the clip has left it, and the coordinator "
        "refuses honest updates",
        "raise strategy.update_clip, or take it out",
    ),
    Rule(
        NOISE, NO_CLIP, WARNING,
        "without a bound on a delta no noise hides it",
        'put "clip:NORM" first',
    ),
    Rule(
        NOISE, TRACKED, ERROR,
        "noise makes running variances negative",
        "take group normalisation, or fedbn, which keeps them on the device",
    ),
    Rule(
        SIGN, TRACKED, WARNING,
        "a small running variance moves as far as the mean of its block, and below 0",
        "take group normalisation, or fedbn, which keeps it on the device",
    ),
    Rule(
        ONE_STREAM, NOISE, FINE,
        "the mean over rounds takes the place of the mean over a cohort: it needs more rounds",
    ),
    Rule(
        ONE_DEVICE, TRACKED, WARNING,
        "the running statistics of the model are those of the last device",
        "take group normalisation, or a larger cohort",
    ),
    Rule(
        DEPLOYED, ATTACK, ERROR,
        "attacks are simulated: a coordinator makes nobody lie",
        "take [attack] out",
    ),
    Rule(
        DEPLOYED, MEMBERS, ERROR,
        "a coordinator judges on held-out devices alone, which keep nothing",
        'set evaluate.NAME.devices = "held-out"',
    ),
    Rule(
        DEPLOYED, ONLINE, WARNING,
        "streams that drift are simulated: a coordinator asks nobody after the last round",
        "take [online] out",
    ),
)  # fmt: skip


# ---- asking it -------------------------------------------------------------------------------


def found(case: Case) -> Iterator[Rule]:
    """The rows that hold of a case, in the order of the table."""
    return (rule for rule in RULES if rule.holds(case))


def conflicts(case: Case) -> Iterator[Rule]:
    """The rows that concern the strategy of a case, whatever else is chosen."""
    return (rule for rule in RULES if rule.one.holds(case))


def check(work: Workload, deployed: bool = False) -> None:
    """Before a run: ExperimentError for what does not go together, and else a RuleWarning for each
    thing that is doubtful."""
    rows = list(found(Case.of(work, deployed)))
    for rule in rows:
        if rule.severity == ERROR:
            raise _told(rule, work)
    for rule in rows:
        if rule.severity == WARNING:
            warnings.warn(str(_told(rule, work)), RuleWarning, stacklevel=2)


def _told(rule: Rule, work: Workload) -> ExperimentError:
    """The row, with the line of the file that brings it about."""
    return work.experiment.origin.error(rule.other.keys, str(rule))

"""Online learning as an experiment asks for it: what contradicts, and what it comes to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.data.domains import Change
from fedtiny.data.streams import Stream
from fedtiny.device.gating import NEVER, OF_CLASSES, Gate
from fedtiny.errors import ExperimentError
from fedtiny.experiment.evaluation import interval
from fedtiny.values import EVALUATE, Instruction, Phase, Sgd

if TYPE_CHECKING:
    from fedtiny.data.tables import Task
    from fedtiny.experiment import Experiment
    from fedtiny.experiment.reading import Keys
    from fedtiny.experiment.schema import Online
    from fedtiny.tensors import Bools, Float64

WINDOWS = 40
"""Points of a curve over a stream, at most."""


# ---- what is asked ---------------------------------------------------------------------------


def instruction_of(asked: Online) -> Instruction:
    """How a step is taken."""
    return Instruction(EVALUATE, phases=(Phase(asked.lr or 0.0, 1, sgd=Sgd(clip=asked.clip)),))


def gate_of(asked: Online) -> Gate:
    """When it is taken."""
    return Gate(asked.gate, asked.threshold or 0.0, asked.window)


def stream_of(asked: Online) -> Stream:
    """What a device meets."""
    ends = asked.drift_begins if asked.drift_ends is None else asked.drift_ends
    change = Change.parse(asked.drift) if asked.drift else None
    mix = tuple(asked.mix or ())
    return Stream(asked.samples, asked.drift_begins, ends, change, mix, asked.repeats)


# ---- what contradicts ------------------------------------------------------------------------


def contradictions(experiment: Experiment) -> Iterator[tuple[Keys, str]]:
    """What no single key of ``[online.NAME]`` can tell: the keys, and what is wrong."""
    for name, asked in experiment.online.items():
        where = ("online", name)
        for key, message in _flaws(asked, f"online.{name}"):
            yield (*where, key), message
        if asked.devices == "held-out" and not experiment.held_out:
            yield (
                (*where, "devices"),
                f"nobody is held out to meet the stream of online.{name}; raise fleet.held_out, or "
                "set devices = 'all'",
            )


def _flaws(asked: Online, section: str) -> Iterator[tuple[str, str]]:
    has_threshold = asked.gate in OF_CLASSES
    if has_threshold and asked.threshold is None:
        yield "gate", f"{section}: the gate {asked.gate!r} needs a threshold from 0 to 1"
    if not has_threshold and (asked.threshold is not None or asked.window != 1):
        yield "gate", f"{section}: threshold and window are for the gates 'confidence' and 'error'"
    if asked.lr is None and asked.gate != NEVER:
        yield "lr", f"{section}.lr is missing; give it a number > 0"
    if not (asked.drift or asked.mix):
        yield "drift", f"{section} drifts to nothing; give it a drift, a mix, or both"
    ends = asked.drift_begins if asked.drift_ends is None else asked.drift_ends
    if not asked.drift_begins <= ends < asked.samples:
        yield (
            "drift_begins",
            f"{section}: a drift from sample {asked.drift_begins:,} to {ends:,} does not lie, in "
            f"that order, within a stream of {asked.samples:,} samples",
        )


def check(experiment: Experiment, task: Task) -> None:
    """Raises ExperimentError where a stream does not suit the data."""
    for name, asked in experiment.online.items():
        for key, message in _misfits(asked, task):
            raise experiment.origin.error(("online", name, key), f"online.{name}.{key}: {message}")


def _misfits(asked: Online, task: Task) -> Iterator[tuple[str, str]]:
    if task.classes is None and asked.gate in OF_CLASSES:
        yield (
            "gate",
            f"the gate {asked.gate!r} looks at classes, and the data are a regression; take "
            "'always' or 'never'",
        )
    if asked.mix and len(asked.mix) != (task.classes or 0):
        has = f"{task.classes} classes" if task.classes else "no classes"
        yield "mix", f"{len(asked.mix)} weights for data of {has}; give one a class"
    try:
        if asked.drift:
            Change.parse(asked.drift).check(task.features)
    except ExperimentError as error:
        yield "drift", str(error)


# ---- what it comes to ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scores:
    """What devices came to, a row each: the score of each sample when it was met, whether a step
    was taken on it, and the mean scores of either domain before the stream and after it.

    A score is 1 for a right prediction, else 0; of a regression the loss.
    """

    met: Float64
    adapted: Bools
    first_before: Float64
    first_after: Float64
    new_before: Float64
    new_after: Float64
    diverged: Bools


@dataclass(frozen=True, eq=False)
class Cost:
    """Of one step, for each device; columns."""

    macs: Float64
    seconds: Float64
    joules: Float64


def summary(asked: Online, scores: Scores, cost: Cost, labelled: bool) -> dict[str, Any]:
    """Means over devices, with the half-widths of their 95 % intervals as ``_ci``."""
    measure = "accuracy" if labelled else "loss"
    row: dict[str, Any] = {
        "gate": asked.gate, "devices": len(scores.met), "samples": asked.samples,
        "measure": measure,
    }  # fmt: skip
    for name, each in _measured(asked, scores).items():
        row[f"{measure}_{name}"], row[f"{measure}_{name}_ci"] = interval(each)
    lost = scores.first_before - scores.first_after
    row["forgetting"], row["forgetting_ci"] = interval(lost if labelled else -lost)
    row |= _steps(scores.adapted, cost) | _curves(scores, measure)
    return row | ({"diverged": int(scores.diverged.sum())} if scores.diverged.any() else {})


def _measured(asked: Online, scores: Scores) -> Mapping[str, Float64]:
    names = "first_before", "first_after", "new_before", "new_after"
    begins = asked.drift_begins
    return {
        **({"before_drift": scores.met[:, :begins].mean(axis=1)} if begins else {}),
        "from_drift": scores.met[:, begins:].mean(axis=1),
        **{name: getattr(scores, name) for name in names},
    }


def _steps(adapted: Bools, cost: Cost) -> dict[str, Any]:
    """How many steps were taken and saved, and what they cost, on a device in the mean."""
    taken = adapted.sum(axis=1).astype(np.float64)
    saved = adapted.shape[1] - taken
    share, half = interval(adapted.mean(axis=1))
    return {
        "adapted": share, "adapted_ci": half,
        "steps": _mean(taken), "steps_saved": _mean(saved),
        "adaptation_macs": _mean(taken * cost.macs), "saved_macs": _mean(saved * cost.macs),
        "adaptation_s": _mean(taken * cost.seconds),
        "adaptation_j": _mean(taken * cost.joules), "saved_j": _mean(saved * cost.joules),
    }  # fmt: skip


def _mean(each: Float64) -> float:
    return float(each.mean()) if each.size else 0.0


def _curves(scores: Scores, measure: str) -> dict[str, Any]:
    """The same in windows of the stream, the last of them maybe shorter."""
    samples = scores.met.shape[1]
    width = -(-samples // WINDOWS)
    starts = range(0, samples, width)
    met = [interval(scores.met[:, at : at + width].mean(axis=1)) for at in starts]
    adapted = [_mean(scores.adapted[:, at : at + width].mean(axis=1)) for at in starts]
    return {
        "window_samples": width,
        f"{measure}_curve": [value for value, _ in met],
        f"{measure}_curve_ci": [half for _, half in met],
        "adapted_curve": adapted,
    }

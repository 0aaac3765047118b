"""Calling a strategy that somebody else wrote: what goes wrong is said with its name and round.

Nothing of a round that a coordinator runs is lost when its strategy raises: the accepted updates
stay in the journal, and a repaired strategy finishes the round after a restart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fedtiny.errors import FedtinyError, StrategyError, UpdateError, WireError
from fedtiny.fold import FoldRule
from fedtiny.layout import UNSENT, Layout
from fedtiny.masks import remembered
from fedtiny.strategies.base import Round, Strategy
from fedtiny.tensors import FLOAT_BYTES
from fedtiny.transforms.table import joined, parse, written
from fedtiny.values import (
    CALIBRATE,
    EVALUATE,
    GRADIENT,
    QUERY,
    SCORE,
    SUMS,
    SUPPORT,
    TRAIN,
    VALUES,
    VOTES,
    Instruction,
    Masks,
    Phase,
    Transform,
)

if TYPE_CHECKING:
    from fedtiny.strategies.base import Contribution, FleetFacts, Observed, State
    from fedtiny.tensors import Float32, Float64, Int64

KINDS, PARTS = (TRAIN, EVALUATE, CALIBRATE, SCORE, SUMS), (SUPPORT, QUERY)
RETURNS = (VALUES, GRADIENT, VOTES)

Result = TypeVar("Result")


def fitted(strategy: Strategy, fleet: FleetFacts) -> Strategy:
    """The strategy, fitted to the Programs of its fleet."""
    result = _call(strategy, "fitted", None, lambda: strategy.fitted(fleet))
    if not isinstance(result, Strategy):
        raise _wrong(strategy, "fitted", None, f"a Strategy, not {type(result).__name__}")
    return result


def local(strategy: Strategy, layout: Layout) -> tuple[str, ...]:
    """The parameters that stay on the devices: some of the model's, but not all."""
    names = _call(strategy, "local", None, lambda: tuple(strategy.local(layout)))
    sent = {p.name for p in layout.parameters if p.group not in UNSENT}
    unknown = sorted(map(repr, set(names) - {p.name for p in layout.parameters}))
    if unknown:
        needed = f"names of parameters of the model; it has no {', '.join(unknown)}"
        raise _wrong(strategy, "local", None, needed)
    if names and sent <= set(names):
        raise _wrong(strategy, "local", None, "some of the parameters; with all, nothing is shared")
    return names


def bucket(strategy: Strategy, layout: Layout) -> int:
    """The most coordinates that one of its growths may return."""
    most = _call(strategy, "bucket", None, lambda: strategy.bucket(layout))
    if not isinstance(most, Integral) or most < 0:
        raise _wrong(strategy, "bucket", None, f"an integer >= 0, not {most!r}")
    return int(most)


def start(strategy: Strategy, layout: Layout, model: Float32) -> State:
    """Its state before the first round."""
    state = _call(strategy, "start", None, lambda: strategy.start(layout, model))
    return _checked_state(strategy, None, state)


def ask(strategy: Strategy, round: Round, state: State, layout: Layout) -> Instruction:
    """Its instruction for the round, with its masks; devices with this layout can carry it out."""
    asked = _call(strategy, "ask", round, lambda: strategy.ask(round, state))
    if not isinstance(asked, Instruction):
        raise _wrong(strategy, "ask", round, f"an Instruction, not {type(asked).__name__}")
    known = masks(strategy, round, state, layout)
    pruned = bool(known)
    pruning = _pruning_flaws(asked, pruned, strategy, layout)
    for flaw in itertools.chain(_flaws(asked, layout), _keeping_flaws(asked, pruned), pruning):
        raise StrategyError(f"{type(strategy).__name__}.ask {_when(round)}: {flaw}")
    if strategy.asynchronous:
        _check_asynchronous(strategy, round, asked, layout)
    if sends_deltas(asked):
        asked = replace(asked, transforms=_transforms(strategy, round, asked))
    return replace(asked, masks=known) if known and asked.kind in (TRAIN, EVALUATE) else asked


def _check_asynchronous(
    strategy: Strategy, round: Round, asked: Instruction, layout: Layout
) -> None:
    """What comes late counts in another round, as what that one has asked for."""
    if asked.kind != TRAIN:
        needed = f"the kind {TRAIN!r}, not {asked.kind!r}: what comes late counts in another round"
        raise _wrong(strategy, "ask", round, needed)
    state = start(strategy, layout, np.zeros(layout.size, np.float32))
    first = _call(strategy, "ask", round, lambda: strategy.ask(replace(round, t=0), state))
    if _sent(first) != _sent(asked):
        needed = (
            "the returns, transforms and groups of round 0, for what comes late counts in another "
            f"round: {_sent(first)}, not {_sent(asked)}"
        )
        raise _wrong(strategy, "ask", round, needed)


def _sent(asked: Instruction) -> tuple[object, ...]:
    """What tells one kind of update from another."""
    groups = {tuple(phase.groups) for phase in asked.phases}
    return asked.returns, [*map(written, asked.transforms)], sorted(groups), bool(asked.grow)


def sends_deltas(asked: Instruction) -> bool:
    """Whether what comes back can be transformed."""
    return asked.kind == TRAIN and asked.returns in (VALUES, GRADIENT) and not asked.grow


def _transforms(strategy: Strategy, round: Round, asked: Instruction) -> tuple[Transform, ...]:
    """Those that it asks for, and those of its field."""
    try:
        return joined(asked.transforms, parse(strategy.transforms))
    except StrategyError as error:
        raise StrategyError(f"{type(strategy).__name__}.ask {_when(round)}: {error}") from None


def masks(strategy: Strategy, round: Round, state: State, layout: Layout) -> Masks:
    """Its mask of each density, which devices with this layout can read."""
    given = _call(
        strategy, "masks", round,
        lambda: tuple((float(density), bytes(blob)) for density, blob in strategy.masks(state)),
    )  # fmt: skip
    densities = [density for density, _ in given]
    if densities != sorted(set(densities)) or not all(0 < density < 1 for density in densities):
        needed = f"densities that ascend between 0 and 1, each once; they are {densities}"
        raise _wrong(strategy, "masks", round, needed)
    for density, blob in given:
        try:
            remembered(blob, layout)
        except WireError as error:
            needed = f"blobs of masks; that of density {density:g} is none: {error}"
            raise _wrong(strategy, "masks", round, needed) from None
    return given


def _flaws(asked: Instruction, layout: Layout) -> Iterator[str]:
    """What no device could carry out; each names its field."""
    for name, known in (("kind", KINDS), ("returns", RETURNS), ("part", PARTS)):
        if getattr(asked, name) not in known:
            yield f"{name} = {getattr(asked, name)!r}; it must be one of {', '.join(known)}"
    for flaw in _phases_flaws(asked, layout):
        yield flaw
        return
    if asked.kind == SCORE and not asked.candidates:
        yield "candidates = (); to score takes at least one"
    if (asked.kind == SUMS) != (asked.sums is not None):
        yield f"sums = {asked.sums} in a round of kind {asked.kind!r}; name them in one of {SUMS!r}"
    elif asked.sums and asked.sums.head not in {p.name for p in layout.parameters if p.is_matrix}:
        yield f"sums.head = {asked.sums.head!r}; name the weights of the last layer, [in, out]"
    if asked.transforms and not sends_deltas(asked):
        yield (
            f"transforms of a round of kind {asked.kind!r} that returns {asked.returns!r}; only "
            "what trains and does not grow sends a delta"
        )
    vectors = {"correction": asked.correction} if asked.correction is not None else {}
    vectors |= {f"candidates[{i}]": c for i, c in enumerate(asked.candidates)
                if not isinstance(c, int)}  # fmt: skip
    for name, vector in vectors.items():
        if len(vector) != layout.nbytes:
            yield f"{name} has {len(vector):,} B; the model has {layout.nbytes:,} B of float32"


def _keeping_flaws(asked: Instruction, pruned: bool) -> Iterator[str]:
    """Of corrections, and of what devices keep."""
    if asked.correction is None and any(phase.corrected for phase in asked.phases):
        yield "correction = None; a phase is corrected, give the vector"
    if (asked.control or asked.own) and (asked.kind, asked.returns) != (TRAIN, VALUES):
        yield (
            f"a control variate or a model of the device's own in a round of kind {asked.kind!r} "
            f"that returns {asked.returns!r}; both need one that trains and returns values"
        )
    if asked.control and (asked.correction is None or not asked.phases[-1].lr):
        yield "control without a correction, or with lr = 0; give the vector c, and a learning rate"
    if asked.control and pruned:
        yield "control of pruned models, whose masks move; set device.density = 1"
    if any(phase.corrected or phase.ahead for phase in asked.own):
        yield "own has a phase that is corrected or looks ahead; only the shared model can"


def _pruning_flaws(
    asked: Instruction, pruned: bool, strategy: Strategy, layout: Layout
) -> Iterator[str]:
    if asked.masks:
        yield "masks are given; leave them out, they are those of masks(state)"
    if asked.grow or asked.returns == VOTES:
        yield from _growth_flaws(asked, pruned, bucket(strategy, layout), layout)
    if asked.pools and not layout.statistics_floats:
        yield "candidates are to be calibrated, but no normalisation of the model tracks statistics"
    if asked.pools and strategy.needs == "all":
        yield 'candidates are to be calibrated; what they give can only be summed: needs = "sum"'
    expected = FLOAT_BYTES * len(asked.candidates) * layout.statistics_floats
    if asked.statistics is not None and (asked.kind, len(asked.statistics)) != (SCORE, expected):
        yield (
            f"statistics has {len(asked.statistics):,} B in a round of kind {asked.kind!r}; to "
            f"score {len(asked.candidates):,} candidates takes {expected:,} B"
        )


def _growth_flaws(asked: Instruction, pruned: bool, most: int, layout: Layout) -> Iterator[str]:
    sizes = {p.name: p.size for p in layout.parameters}
    names = [name for name, _ in asked.grow]
    if asked.kind != TRAIN or not asked.grow or not pruned:
        yield f"grow = {asked.grow} of a round of kind {asked.kind!r}; it takes masks to grow from"
    elif len(set(names)) != len(names) or not set(names) <= set(sizes):
        yield f"grow names {names}; name parameters of the model, each once"
    elif not all(0 < count <= sizes[name] for name, count in asked.grow):
        yield f"grow = {asked.grow}; a parameter can grow by 1 up to its size"
    elif sum(count for _, count in asked.grow) > most:
        wanted = sum(count for _, count in asked.grow)
        yield (
            f"grow names {wanted:,} weights; the Programs have memory for bucket(layout) = "
            f"{most:,} in all: let bucket() return more, or grow fewer"
        )
    elif asked.sends_gradient and asked.phases[-1].steps != 1:
        yield f"phases[-1].steps = {asked.phases[-1].steps}; what grows is found in 1 step"


def _phases_flaws(asked: Instruction, layout: Layout) -> Iterator[str]:
    if not isinstance(asked.phases, tuple | list):
        yield f"phases is a {type(asked.phases).__name__}; give a tuple of Phases"
    elif not all(isinstance(phase, Phase) for phase in asked.phases):
        yield f"phases = {asked.phases!r}; give a tuple of Phases"
    elif asked.kind == TRAIN and not asked.phases:
        yield "phases = (); to train takes at least one Phase"
    else:
        for name, phases in (("phases", asked.phases), ("own", asked.own)):
            for index, phase in enumerate(phases):
                yield from (f"{name}[{index}].{flaw}" for flaw in _phase_flaws(phase, layout))
        if asked.returns == GRADIENT and asked.phases[-1].ahead:
            yield "phases[-1].ahead of a round that returns a gradient; give it a phase of its own"


def _phase_flaws(phase: Phase, layout: Layout) -> Iterator[str]:
    if not (isinstance(phase.lr, Real) and math.isfinite(phase.lr) and phase.lr >= 0):
        yield f"lr = {phase.lr!r}; it must be a finite number >= 0"
    if not isinstance(phase.steps, Integral) or phase.steps < 0:
        yield f"steps = {phase.steps!r}; it must be an integer >= 0, where 0 is one pass"
    if not (isinstance(phase.ahead, Real) and math.isfinite(phase.ahead) and phase.ahead >= 0):
        yield f"ahead = {phase.ahead!r}; it must be 0 (off) or a finite learning rate"
    elif phase.ahead and (phase.sgd.momentum or phase.sgd.prox):
        yield "ahead with momentum or prox; each step that looks ahead begins anew at rest"
    if phase.part not in PARTS:
        yield f"part = {phase.part!r}; it must be one of {', '.join(PARTS)}"
    if not isinstance(phase.groups, tuple | list):
        yield f"groups = {phase.groups!r}; give a tuple of names"
        return
    unknown = [group for group in phase.groups if group not in layout.groups]
    if unknown:
        yield f"groups = {phase.groups}; the model has {', '.join(layout.groups)}"


def fold_rule(strategy: Strategy, round: Round) -> FoldRule:
    """Its fold rule: the fixed point in which the updates of the round are added up."""
    rule = _call(strategy, "fold_rule", round, lambda: strategy.fold_rule)
    if not isinstance(rule, FoldRule):
        raise _wrong(strategy, "fold_rule", round, f"a FoldRule, not {type(rule).__name__}")
    return rule


def weight(
    strategy: Strategy, round: Round, samples: Float64, staleness: Float64 | None = None
) -> Float64:
    """Its weights, a column like ``samples``, on the grid of its fold rule; discounted, if
    ``staleness`` says how many versions late each update is."""
    weights = _column(strategy, "weight", round, strategy.weight, samples)
    if staleness is not None:
        weights = weights * _column(strategy, "discount", round, strategy.discount, staleness)
    rule = fold_rule(strategy, round)
    try:
        return rule.weights(weights)
    except UpdateError as error:
        raise StrategyError(f"{type(strategy).__name__}.weight {_when(round)}: {error}") from None


def _column(
    strategy: Strategy, method: str, round: Round, call: Callable[[Float64], object], of: Float64
) -> Float64:
    column = _call(strategy, method, round, lambda: np.asarray(call(of), np.float64))
    if column.shape != of.shape:
        raise _wrong(strategy, method, round, f"{of.size} weights, not {column.size}")
    return column


def barred(strategy: Strategy, round: Round, state: State) -> Int64:
    """The devices that the round must not ask, ascending, each once."""
    devices = _call(strategy, "barred", round, lambda: np.asarray(strategy.barred(state)))
    whole = not devices.size or devices.dtype.kind in "iu"
    if devices.ndim != 1 or not whole or devices.min(initial=0) < 0:
        needed = f"indices of devices, not {devices.dtype} {devices.shape}"
        raise _wrong(strategy, "barred", round, needed)
    return np.unique(devices.astype(np.int64))


def finish(
    strategy: Strategy, round: Round, model: Float32, contribution: Contribution, state: State
) -> tuple[Float32, State]:
    """Its next model (float32, finite, of the same size) and its next state."""
    return _next(
        strategy, "finish", round, model,
        lambda: strategy.finish(round, model, contribution, state),
    )  # fmt: skip


def observe(
    strategy: Strategy, round: Round, model: Float32, seen: Observed, state: State
) -> tuple[Float32, State]:
    """The same after a round that did not train."""
    return _next(
        strategy, "observe", round, model, lambda: strategy.observe(round, model, seen, state)
    )


def _next(
    strategy: Strategy, method: str, round: Round, model: Float32, call: Callable[[], object]
) -> tuple[Float32, State]:
    result = _call(strategy, method, round, call)
    if not isinstance(result, tuple) or len(result) != 2:
        raise _wrong(strategy, method, round, "a pair (model, state)")
    next_model, next_state = np.asarray(result[0]), result[1]
    if next_model.shape != model.shape or next_model.dtype != np.float32:
        shape = f"{next_model.dtype} {next_model.shape}"
        raise _wrong(strategy, method, round, f"a model of float32 {model.shape}, not {shape}")
    bad = model.size - np.count_nonzero(np.isfinite(next_model))
    if bad:
        what = f"a finite model, but {bad:,} of {model.size:,} values are not"
        raise _wrong(strategy, method, round, what)
    return next_model, _checked_state(strategy, round, next_state)


def telemetry(
    strategy: Strategy, round: Round, model: Float32, state: State
) -> Mapping[str, float]:
    """What the history tells of the round; ``model`` and ``state`` are those after it."""
    told = _call(
        strategy, "telemetry", round, lambda: dict(strategy.telemetry(round, model, state))
    )
    for name, value in told.items():
        if not (isinstance(name, str) and isinstance(value, Real) and math.isfinite(value)):
            raise _wrong(
                strategy, "telemetry", round, f"finite numbers by name; {name!r} is {value!r}"
            )
    return {name: float(value) for name, value in told.items()}


def _when(round: Round | None) -> str:
    return f"in round {round.t:,} of {round.T:,}" if round else "before round 0"


def _call(
    strategy: Strategy, method: str, round: Round | None, call: Callable[[], Result]
) -> Result:
    try:
        return call()
    except StrategyError:
        raise
    except FedtinyError as error:
        what = f"{type(strategy).__name__}.{method} {_when(round)}"
        raise StrategyError(f"{what}: {error}") from error
    except Exception as error:
        what = f"{type(strategy).__name__}.{method} failed {_when(round)}"
        raise StrategyError(f"{what}: {type(error).__name__}: {error}") from error


def _checked_state(strategy: Strategy, round: Round | None, state: object) -> State:
    if not isinstance(state, Mapping):
        raise _wrong(strategy, "state", round, f"a mapping, not {type(state).__name__}")
    for name, value in state.items():
        is_array = isinstance(value, np.ndarray) and value.dtype in (np.float64, np.uint8)
        if not isinstance(name, str) or not (is_array or isinstance(value, int | float)):
            kind = getattr(value, "dtype", type(value).__name__)
            needed = f"float64 or uint8 arrays or numbers by name; {name!r} is {kind}"
            raise _wrong(strategy, "state", round, needed)
    return state


def _wrong(strategy: Strategy, method: str, round: Round | None, needed: str) -> StrategyError:
    return StrategyError(f"{type(strategy).__name__}.{method} {_when(round)} must give {needed}")

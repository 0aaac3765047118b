"""Calling a strategy that somebody else wrote: what goes wrong is said with its name and round.

Nothing of a round that a coordinator runs is lost when its strategy raises: the accepted updates
stay in the journal, and a repaired strategy finishes the round after a restart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fedtiny.errors import StrategyError, UpdateError
from fedtiny.fold import FoldRule
from fedtiny.strategies.base import Round, Strategy
from fedtiny.values import (
    CALIBRATE,
    EVALUATE,
    GRADIENT,
    QUERY,
    SCORE,
    SUPPORT,
    TRAIN,
    VALUES,
    Instruction,
    Layout,
    Phase,
)

if TYPE_CHECKING:
    from fedtiny.strategies.base import Contribution, State
    from fedtiny.tensors import Float32, Float64

KINDS, RETURNS, PARTS = (TRAIN, EVALUATE, CALIBRATE, SCORE), (VALUES, GRADIENT), (SUPPORT, QUERY)

Result = TypeVar("Result")


def start(strategy: Strategy, layout: Layout, model: Float32) -> State:
    """Its state before the first round."""
    state = _call(strategy, "start", "before round 0", lambda: strategy.start(layout, model))
    return _checked_state(strategy, "before round 0", state)


def ask(strategy: Strategy, round: Round, state: State, layout: Layout) -> Instruction:
    """Its instruction for the round, which devices with this layout can carry out."""
    when = _when(round)
    asked = _call(strategy, "ask", when, lambda: strategy.ask(round, state))
    if not isinstance(asked, Instruction):
        raise _wrong(strategy, "ask", when, f"an Instruction, not {type(asked).__name__}")
    for flaw in _flaws(asked, layout):
        raise StrategyError(f"{type(strategy).__name__}.ask {when}: {flaw}")
    return asked


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
    if asked.correction is None and any(phase.corrected for phase in asked.phases):
        yield "correction = None; a phase is corrected, give the vector"
    vectors = {"correction": asked.correction} if asked.correction is not None else {}
    vectors |= {f"candidates[{i}]": c for i, c in enumerate(asked.candidates)
                if not isinstance(c, int)}  # fmt: skip
    for name, vector in vectors.items():
        if len(vector) != layout.nbytes:
            yield f"{name} has {len(vector):,} B; the model has {layout.nbytes:,} B of float32"


def _phases_flaws(asked: Instruction, layout: Layout) -> Iterator[str]:
    if not isinstance(asked.phases, tuple | list):
        yield f"phases is a {type(asked.phases).__name__}; give a tuple of Phases"
    elif not all(isinstance(phase, Phase) for phase in asked.phases):
        yield f"phases = {asked.phases!r}; give a tuple of Phases"
    elif asked.kind == TRAIN and not asked.phases:
        yield "phases = (); to train takes at least one Phase"
    else:
        for index, phase in enumerate(asked.phases):
            yield from (f"phases[{index}].{flaw}" for flaw in _phase_flaws(phase, layout))


def _phase_flaws(phase: Phase, layout: Layout) -> Iterator[str]:
    if not (isinstance(phase.lr, Real) and math.isfinite(phase.lr) and phase.lr >= 0):
        yield f"lr = {phase.lr!r}; it must be a finite number >= 0"
    if not isinstance(phase.steps, Integral) or phase.steps < 0:
        yield f"steps = {phase.steps!r}; it must be an integer >= 0, where 0 is one pass"
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
    when = _when(round)
    rule = _call(strategy, "fold_rule", when, lambda: strategy.fold_rule)
    if not isinstance(rule, FoldRule):
        raise _wrong(strategy, "fold_rule", when, f"a FoldRule, not {type(rule).__name__}")
    return rule


def weight(strategy: Strategy, round: Round, samples: Float64) -> Float64:
    """Its weights, a column like ``samples``, on the grid of its fold rule."""
    when = _when(round)
    weights = _call(
        strategy, "weight", when, lambda: np.asarray(strategy.weight(samples), np.float64)
    )
    if weights.shape != samples.shape:
        raise _wrong(strategy, "weight", when, f"{samples.size} weights, not {weights.size}")
    rule = fold_rule(strategy, round)
    try:
        return rule.weights(weights)
    except UpdateError as error:
        raise StrategyError(f"{type(strategy).__name__}.weight {when}: {error}") from None


def finish(
    strategy: Strategy, round: Round, model: Float32, contribution: Contribution, state: State
) -> tuple[Float32, State]:
    """Its next model (float32, finite, of the same size) and its next state."""
    when = _when(round)
    result = _call(
        strategy, "finish", when, lambda: strategy.finish(round, model, contribution, state)
    )
    if not isinstance(result, tuple) or len(result) != 2:
        raise _wrong(strategy, "finish", when, "a pair (model, state)")
    next_model, next_state = np.asarray(result[0]), result[1]
    if next_model.shape != model.shape or next_model.dtype != np.float32:
        shape = f"{next_model.dtype} {next_model.shape}"
        raise _wrong(strategy, "finish", when, f"a model of float32 {model.shape}, not {shape}")
    bad = model.size - np.count_nonzero(np.isfinite(next_model))
    if bad:
        what = f"a finite model, but {bad:,} of {model.size:,} values are not"
        raise _wrong(strategy, "finish", when, what)
    return next_model, _checked_state(strategy, when, next_state)


def _when(round: Round) -> str:
    return f"in round {round.t:,} of {round.T:,}"


def _call(strategy: Strategy, method: str, when: str, call: Callable[[], Result]) -> Result:
    try:
        return call()
    except StrategyError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise StrategyError(f"{type(strategy).__name__}.{method} failed {when}: {cause}") from error


def _checked_state(strategy: Strategy, when: str, state: object) -> State:
    if not isinstance(state, Mapping):
        raise _wrong(strategy, "state", when, f"a mapping, not {type(state).__name__}")
    for name, value in state.items():
        is_array = isinstance(value, np.ndarray) and value.dtype == np.float64
        if not isinstance(name, str) or not (is_array or isinstance(value, int | float)):
            kind = getattr(value, "dtype", type(value).__name__)
            raise _wrong(
                strategy, "state", when, f"float64 arrays or numbers by name; {name!r} is {kind}"
            )
    return state


def _wrong(strategy: Strategy, method: str, when: str, needed: str) -> StrategyError:
    return StrategyError(f"{type(strategy).__name__}.{method} {when} must give {needed}")

"""Calling a strategy that somebody else wrote: what goes wrong is said with its name and round.

Nothing of a round is lost when its strategy raises: the accepted updates stay in the journal, and
a repaired strategy finishes the round after a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fedtiny.errors import FedtinyError, StrategyError
from fedtiny.strategies.base import Round, Strategy
from fedtiny.values import Instruction, Layout

if TYPE_CHECKING:
    from fedtiny.strategies.base import Contribution, State
    from fedtiny.tensors import Float32, Float64

Result = TypeVar("Result")


def start(strategy: Strategy, layout: Layout, model: Float32) -> State:
    """Its state before the first round."""
    state = _call(strategy, "start", "before round 0", lambda: strategy.start(layout, model))
    return _checked_state(strategy, "before round 0", state)


def ask(strategy: Strategy, round: Round, state: State) -> Instruction:
    """Its instruction for the round."""
    when = _when(round)
    asked = _call(strategy, "ask", when, lambda: strategy.ask(round, state))
    if not isinstance(asked, Instruction):
        raise _wrong(strategy, "ask", when, f"an Instruction, not {type(asked).__name__}")
    return asked


def weight(strategy: Strategy, round: Round, samples: Float64) -> Float64:
    """Its weights, a column like ``samples``, on the grid of its fold rule."""
    when = _when(round)
    weights = np.asarray(_call(strategy, "weight", when, lambda: strategy.weight(samples)))
    if weights.shape != samples.shape:
        raise _wrong(strategy, "weight", when, f"{samples.size} weights, not {weights.size}")
    return strategy.fold_rule.weights(weights)


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
    except FedtinyError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise StrategyError(
            f"{type(strategy).__name__}.{method} failed {when}: {cause}; nothing of the round is "
            "lost: repair the strategy and go on"
        ) from error


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

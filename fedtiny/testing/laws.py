"""The laws: what holds of every strategy, whatever it computes.

Each takes the ``[strategy]`` section of an experiment and raises AssertionError, saying what broke.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.layout import FROZEN
from fedtiny.rounds.journal import replay
from fedtiny.strategies.table import build
from fedtiny.testing.trial import ROUNDS, Trial, undisturbed
from fedtiny.values import Update

if TYPE_CHECKING:
    from fedtiny.tensors import Float32

Spec = Mapping[str, Any]


def it_is_a_value(strategy: Spec) -> None:
    """Two that are made alike are equal, and can stand in a set."""
    one, other = build(strategy), build(strategy)
    assert one == other, f"{one} and {other} differ: make it a frozen dataclass of plain fields"
    assert len({one, other}) == 1


def a_run_gives_a_finite_model(strategy: Spec) -> None:
    """All rounds commit, and every value is finite."""
    model = undisturbed(strategy)
    wrong = model.size - np.count_nonzero(np.isfinite(model))
    assert not wrong, f"{wrong} of {model.size} values of the model are not finite"


def the_order_of_arrival_changes_no_bit(strategy: Spec) -> None:
    """Updates that arrive backwards make the same model."""

    def backwards(updates: list[Update]) -> Sequence[Update]:
        return updates[::-1]

    turned = Trial(strategy).each(lambda trial: trial.round(backwards))
    _same(turned, undisturbed(strategy), "the order in which updates arrive changes the model")


def parts_that_are_merged_change_no_bit(strategy: Spec) -> None:
    """Updates that are folded together make the same model as one by one."""

    def together(trial: Trial) -> None:
        trial.submit(*trial.visits())

    merged = Trial(strategy).each(together)
    _same(merged, undisturbed(strategy), "updates folded together make another model")


def a_crash_after_every_update_changes_no_bit(strategy: Spec) -> None:
    """The coordinator falls before and after each update, and goes on from its journal."""

    def crashing(trial: Trial) -> None:
        for update in trial.visits():
            trial.restart()
            trial.submit(update)
            trial.restart()

    _same(
        Trial(strategy).each(crashing), undisturbed(strategy),
        "after a restart the run makes another model: keep what it remembers in the State alone",
    )  # fmt: skip


def replay_rebuilds_every_model(strategy: Spec) -> None:
    """The commit records hold all that the models are made of."""
    trial = Trial(strategy)
    seen = {0: trial.model}

    def looking(trial: Trial) -> None:
        for update in trial.visits():
            trial.submit(update)
            seen[trial.coordinator.rounds.round] = trial.model

    trial.each(looking)
    work = trial.work
    for round, (model, _) in enumerate(
        replay(trial.journal, ROUNDS, trial.strategy, work.layout, work.initial)
    ):
        _same(model, seen[round], f"the replay makes another model before round {round}")


def what_nobody_trains_stays_as_it_is(strategy: Spec) -> None:
    """Coordinates that no device has trained do not move."""
    trial = Trial(strategy)
    frozen = trial.work.layout["frozen.weight"]
    assert frozen.group == FROZEN
    own = slice(frozen.offset, frozen.offset + frozen.size)
    before, after = trial.model[own].copy(), trial.finish()[own]
    assert np.all((after == before) | (after == 0.0)), (
        "coordinates that nobody trained have moved: a Total gives them a mean of 0, and among "
        "single updates they are NaN"
    )


def the_state_can_be_stored(strategy: Spec) -> None:
    """After each round, as a file of arrays and a JSON object; nothing is lost."""
    trial = Trial(strategy)

    def storing(trial: Trial) -> None:
        state = trial.coordinator.strategy_state
        arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
        numbers = {name: value for name, value in state.items() if name not in arrays}
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        file.seek(0)
        restored = dict(np.load(file, allow_pickle=False)) | json.loads(json.dumps(numbers))
        for name, value in state.items():
            assert np.array_equal(restored[name], value), f"the state's {name!r} is lost"
        trial.round()

    trial.each(storing)


def finishing_leaves_its_arguments_alone(strategy: Spec) -> None:
    """The model and the state of a round are not written to."""
    trial = Trial(strategy)

    def watching(trial: Trial) -> None:
        model, state = trial.model, trial.coordinator.strategy_state
        before = model.copy(), {name: np.copy(value) for name, value in state.items()}
        trial.round()
        _same(model, before[0], "finish() wrote to the model that it was given; copy it")
        for name, value in before[1].items():
            assert np.array_equal(state[name], value), (
                f"finish() wrote to the state's {name!r}; return a new one"
            )

    trial.each(watching)


def _same(a: Float32, b: Float32, otherwise: str) -> None:
    differ = np.count_nonzero(a.view(np.uint32) != b.view(np.uint32))
    assert not differ, f"{otherwise} ({differ} of {a.size} values)"


LAWS = (
    it_is_a_value,
    a_run_gives_a_finite_model,
    the_order_of_arrival_changes_no_bit,
    parts_that_are_merged_change_no_bit,
    a_crash_after_every_update_changes_no_bit,
    replay_rebuilds_every_model,
    what_nobody_trains_stays_as_it_is,
    the_state_can_be_stored,
    finishing_leaves_its_arguments_alone,
)

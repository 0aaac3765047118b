"""FedNova against the lines of its paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedtiny.layout import Ranges
from fedtiny.strategies.base import Round
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.fednova import FedNova
from fedtiny.values import Update
from tests.harness.toys import INITIAL, WHOLE

TAU = [2, 7, 4]
N = np.array([1.0, 2.0, 3.0])
MOVED = np.array([[0.5, -1, 0, 2, 1, 1], [1, 1, 1, -3, 0, 2], [0, 0.25, 4, 1, -1, 0]])


def updates(rows: list[Ranges]) -> list[Update]:
    made = []
    for i, ranges in enumerate(rows):
        x_i = (INITIAL + MOVED[i]).astype(np.float32)
        values = np.concatenate([x_i[start:stop] for start, stop in ranges])
        steps = {"steps": float(TAU[i])}
        made.append(Update(i, i, 0, 0, int(N[i]), values.tobytes(), ranges, steps))
    return made


def finished(strategy: FedNova, rows: list[Ranges]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return strategy.finish(Round(0, 4), INITIAL, updates(rows), {})[0]


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_changes_are_divided_by_what_the_steps_of_their_device_came_to(rho: float) -> None:
    # The gradient of step k counts 1 + rho + ... in all the steps from k on.
    a = np.array([sum(rho**i for k in range(tau) for i in range(tau - k)) for tau in TAU])
    assert rho or a.tolist() == TAU
    p = N / N.sum()
    expected = INITIAL + (p @ a) * (p @ (MOVED / a[:, None]))
    np.testing.assert_allclose(finished(FedNova(momentum=rho), [WHOLE] * 3), expected, rtol=1e-5)


def test_who_takes_as_many_steps_as_all_others_is_averaged_as_in_fedavg() -> None:
    alike = [Update(u.lease, u.device, 0, 0, u.samples, u.values, u.ranges, {"steps": 5.0})
             for u in updates([WHOLE] * 3)]  # fmt: skip
    model, _ = FedNova().finish(Round(0, 4), INITIAL, alike, {})
    p = FedAvg().weight(N) / N.sum()
    np.testing.assert_allclose(model, INITIAL + p @ MOVED, rtol=1e-5)


def test_each_coordinate_is_normalised_over_those_who_trained_it() -> None:
    model = finished(FedNova(), [((0, 2),), ((0, 1),), ((0, 1), (3, 4))])
    a, p = np.array(TAU), N / N.sum()
    expected = INITIAL.astype(float)
    expected[0] += (p @ a) * (p @ (MOVED[:, 0] / a))
    expected[1] += MOVED[0, 1]
    expected[3] += MOVED[2, 3]
    np.testing.assert_allclose(model, expected, rtol=1e-5)


def test_steps_that_nobody_can_have_taken_count_no_more_than_samples_may() -> None:
    def claimed(steps: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        made = updates([WHOLE] * 3)
        liar = replace(made[0], measures={"steps": steps})
        return FedNova().finish(Round(0, 4), INITIAL, [liar, *made[1:]], {})[0]

    assert claimed(2.0**40).tobytes() == claimed(FedNova.weight_cap).tobytes()

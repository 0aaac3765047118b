from __future__ import annotations

import numpy as np

from fedtiny import rng
from fedtiny.rounds import invitation

TRAINING = np.arange(100, 160)


def test_everybody_who_trains_is_invited_once() -> None:
    drawn = invitation.order(7, 3, 0, TRAINING)
    assert sorted(drawn.tolist()) == TRAINING.tolist()


def test_the_order_is_drawn_by_run_round_and_window() -> None:
    asked = [(7, 3, 0), (8, 3, 0), (7, 4, 0), (7, 3, 1)]
    orders = [tuple(invitation.order(*key, TRAINING).tolist()) for key in asked]
    assert len(set(orders)) == 4
    assert orders[0] == tuple(invitation.order(7, 3, 0, TRAINING).tolist())


def test_the_order_is_that_of_the_generator() -> None:
    key = rng.block(7, 3, 2, rng.Purpose.CONTACT, 0)
    expected = [100 + rng.shuffle(at, 60, key) for at in range(60)]
    assert invitation.order(7, 3, 2, TRAINING).tolist() == expected


def test_a_part_of_the_order_is_found_by_its_places() -> None:
    key = invitation.key(7, 3, 2)
    places = np.array([5, 0, 59])
    whole = invitation.order(7, 3, 2, TRAINING)
    assert invitation.invited(TRAINING, places, key).tolist() == whole[places].tolist()

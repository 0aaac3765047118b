"""What training devices and held-out devices draw from, class by class."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedtiny.data.labelled import TEST, TRAINING, Labelled
from fedtiny.errors import ExperimentError

if TYPE_CHECKING:
    from fedtiny.tensors import Int64

KINDS = ("training", "held-out")


class Pools(NamedTuple):
    """For each kind of device and each class ``size`` rows of `Labelled.rows_by_class`.

    They begin at ``start``; both are [2, classes]. The kinds share no row.
    """

    start: Int64
    size: Int64


@lru_cache(maxsize=8)
def class_pools(data: Labelled, held_out_samples: float) -> Pools:
    """Held-out devices draw from the test samples.

    Where the data set has none, they draw from the share ``held_out_samples`` of each class.
    """
    training, test = data.counts(TRAINING), data.counts(TEST)
    first = np.cumsum(training + test) - (training + test)
    if not data.has_test:
        kept = (training * (1.0 - held_out_samples)).astype(np.int64)
        training, test = kept, training - kept
    return Pools(np.stack([first, first + training]), np.stack([training, test]))


def check_share(name: str, share: float) -> None:
    """Raises ExperimentError for a share outside [0, 1)."""
    if not 0.0 <= share < 1.0:
        raise ExperimentError(f"{name} = {share} must be in [0, 1)")

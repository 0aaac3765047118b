"""FedNCM: the nearest class mean, in one round and without a gradient.

G. Legate, N. Bernier, L. Caccia, E. Oyallon, E. Belilovsky, "Guiding The Last Layer in Federated
Learning with Pre-Trained Models", NeurIPS 2023: devices send the sum of the features of each class
and its count, ``mu_c = sum_i s_i,c / sum_i n_i,c``, and a sample is of the class whose mean is
nearest. ``argmin_c |f - mu_c|^2 = argmax_c mu_c f - |mu_c|^2 / 2``: a linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.strategies.closed_form import ClosedForm

if TYPE_CHECKING:
    from fedtiny.tensors import Float64

UNSEEN = -1e6
"""The bias of a class of which nobody has a sample: never the nearest."""


@dataclass(frozen=True, kw_only=True)
class FedNCM(ClosedForm):
    """The class means of the features of the initial model; nothing trains."""

    def solved(self, sums: Float64, features: int, classes: int) -> tuple[Float64, Float64]:
        """``W = mu``, ``b = -|mu|^2 / 2``."""
        by_class, counts = np.split(sums, [features * classes])
        mu = by_class.reshape(classes, features) / np.maximum(counts, 1.0)[:, None]
        bias = -np.add.accumulate(mu * mu, axis=1)[:, -1] / 2.0
        return mu.T, np.where(counts > 0, bias, UNSEEN)

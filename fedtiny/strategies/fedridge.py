"""FedRidge: ridge regression of the classes on the features, in one round and without a gradient.

E. Fani, R. Camoriano, B. Caputo, M. Ciccone, "Accelerating Heterogeneous Federated Learning with
Closed-form Classifiers", ICML 2024: with g = (f, 1) and y the one-hot class, devices send
``A_i = sum g g^T`` and ``B_i = sum g y^T``; ``W = (A + ridge I)^-1 B`` for A and B summed up. The
intercept is not held down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedtiny.strategies.base import require
from fedtiny.strategies.closed_form import ClosedForm
from fedtiny.values import PRODUCTS

if TYPE_CHECKING:
    from fedtiny.tensors import Float64


@dataclass(frozen=True, kw_only=True)
class FedRidge(ClosedForm):
    """The ridge regression on the features of the initial model; nothing trains.

    Attributes:
        ridge: How strongly the weights are held down.
    """

    ridge: float = 1.0

    form: ClassVar[str] = PRODUCTS

    def __post_init__(self) -> None:
        ClosedForm.__post_init__(self)
        require(self, "ridge", self.ridge > 0, "positive")

    def solved(self, sums: Float64, features: int, classes: int) -> tuple[Float64, Float64]:
        """``(A + ridge I)^-1 B``."""
        width = features + 1
        upper, B = np.split(sums, [width * (width + 1) // 2])
        A = np.zeros((width, width))
        A[np.triu_indices(width)] = upper
        A += np.triu(A, 1).T + np.diag([*[self.ridge] * features, 0.0])
        W = eliminated(A, B.reshape(classes, width).T)
        return W[:-1], W[-1]


def eliminated(A: Float64, B: Float64) -> Float64:
    """``A^-1 B`` of a positive definite A: element by element, so the same bits on every host."""
    A, B = A.copy(), B.copy()
    for k in range(len(A)):
        factor = A[:, k] / A[k, k]
        factor[k] = 0.0
        A -= factor[:, None] * A[k]
        B -= factor[:, None] * B[k]
    X: Float64 = B / A.diagonal()[:, None]
    return X

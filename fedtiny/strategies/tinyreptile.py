"""TinyReptile: Reptile for devices that cannot store their samples.

H. Ren, D. Anicic, T. A. Runkler, "TinyReptile: TinyML with Federated Meta-Learning", IJCNN 2023.
One device a round receives phi, takes one gradient step on each sample as it streams by, keeps
none of them, and returns theta: ``phi = phi + alpha_t (theta - phi)``. With a cohort of M the
server steps towards the mean of M such devices, the same rule in expectation.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedtiny.strategies.base import MetaAveraging


@dataclass(frozen=True, kw_only=True)
class TinyReptile(MetaAveraging):
    """One streamed pass a visit; compile the Program with a batch of 1.

    A serial round (``cohort = 1``) is never over-selected; if its device fails, the round passes
    to the next one.
    """

    cohort: int = 1
    beta: float = 0.02
    alpha: float = 0.1

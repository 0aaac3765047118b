"""First-order MAML: learn an initialisation by the gradients where adaptation has led.

C. Finn, P. Abbeel, S. Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
ICML 2017, algorithm 1, with the second derivatives left out (section 5.2): each task i adapts phi
to theta_i by k steps on its support, then ``phi = phi - alpha_t / n * sum_i grad L_i(theta_i)``,
with L_i the loss on its query.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedtiny.strategies.meta_gradient import MetaGradient


@dataclass(frozen=True, kw_only=True)
class FOMAML(MetaGradient):
    """``steps`` mini-batch steps on the support set, and the gradient of one batch of the query."""

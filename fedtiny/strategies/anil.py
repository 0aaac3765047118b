"""ANIL: first-order MAML whose tasks adapt the head alone (almost no inner loop).

A. Raghu, M. Raghu, S. Bengio, O. Vinyals, "Rapid Learning or Feature Reuse? Towards Understanding
the Effectiveness of MAML", ICLR 2020, section 4: the inner loop of task i trains its last layer,
``theta_head = theta_head - beta * grad_head L(theta)``, and the outer step all layers, as in MAML.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedtiny.strategies.meta_gradient import MetaGradient


@dataclass(frozen=True, kw_only=True)
class ANIL(MetaGradient):
    """First-order MAML whose visits adapt one group of parameters.

    Attributes:
        head: The group, as the model names it; for a model of the zoo set ``model.head = "head"``.
    """

    head: str = "head"

    @property
    def adapted(self) -> tuple[str, ...]:
        """The head."""
        return (self.head,)

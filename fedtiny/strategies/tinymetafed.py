"""TinyMetaFed: TinyReptile that reconstructs what is local and sends only what has moved most.

H. Ren, X. Li, D. Anicic, T. A. Runkler, "TinyMetaFed: Efficient Federated Meta-Learning for
TinyML", 2023. A device receives the shared parameters phi; it first reconstructs its local ones by
gradient descent, ``l = l - beta_t grad_l L(phi, l)``, then trains the shared ones in one streamed
pass, ``theta = theta - beta_t grad L(theta, l)``, and sends the largest P % of theta - phi, each
with its place. There ``phi = phi + alpha_t (theta - phi)``, elsewhere phi stays. Both step sizes
fall.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedtiny.strategies.base import Fitted, MetaAveraging, require, split_groups
from fedtiny.values import Transform

if TYPE_CHECKING:
    from fedtiny.strategies.base import Round, State
    from fedtiny.values import Instruction


@dataclass(frozen=True, kw_only=True)
class TinyMetaFed(Fitted, MetaAveraging):
    """One streamed pass a visit; compile the Program with a batch of 1.

    What is local are the groups "local", kept by the device, and "fresh", made anew in each visit;
    a model without them has nothing to reconstruct.

    Attributes:
        upload: The share of what was trained that is sent (P / 100); 1: all of it.
        rebuild: Batches on which the local parameters train before the shared ones do; 0: one
            pass over the support.
        least: The share of ``beta`` that its schedule ends at; ``anneal`` says how it falls.
    """

    cohort: int = 1
    beta: float = 0.02
    alpha: float = 0.1
    upload: float = 0.1
    rebuild: int = 0
    least: float = 0.5

    def __post_init__(self) -> None:
        MetaAveraging.__post_init__(self)
        require(self, "upload", 0 < self.upload <= 1, "a share above 0, up to 1")
        require(self, "rebuild", self.rebuild >= 0, "0 or positive")
        require(self, "least", 0 <= self.least <= 1, "in [0, 1]")

    def beta_at(self, round: Round) -> float:
        """``beta_t``."""
        return self.beta * (self.least + (1.0 - self.least) * self.annealed(round))

    def ask(self, round: Round, state: State) -> Instruction:
        """Reconstruct, train, and send the largest changes."""
        asked = super().ask(round, state)
        phase = replace(asked.phases[0], lr=self.beta_at(round))
        stay, go = split_groups(self.facts.layout)
        local = (replace(phase, groups=stay, steps=self.rebuild),) if stay else ()
        shared = (replace(phase, groups=go),)
        largest = (Transform("topk", self.upload),) if self.upload < 1 else ()
        return replace(asked, phases=(*local, *shared), transforms=largest)

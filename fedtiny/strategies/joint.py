"""Joint training: the baseline that learns one model for all tasks, then transfers it.

FedSGD of McMahan et al., AISTATS 2017 (section 2): one gradient step a visit, averaged over the
cohort. It minimises the mean loss over all devices, not the loss after adaptation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedtiny.strategies.base import Averaging


@dataclass(frozen=True, kw_only=True)
class Joint(Averaging):
    """FedSGD with learning rate ``beta``: ``x = x - beta * mean of the gradients``."""

    steps: int = field(default=1, init=False)

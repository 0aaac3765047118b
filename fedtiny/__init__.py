"""fedtiny: federated meta-learning on tiny devices, simulated and real, from one experiment."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedtiny.version import __version__ as __version__

if TYPE_CHECKING:
    from fedtiny.device.learner import Learner as Learner
    from fedtiny.engine.compile import compile as compile
    from fedtiny.engine.program import Program as Program
    from fedtiny.errors import BudgetError as BudgetError
    from fedtiny.errors import FedtinyError as FedtinyError
    from fedtiny.experiment import Experiment as Experiment
    from fedtiny.simulator.run import Result as Result
    from fedtiny.simulator.run import simulate as simulate
    from fedtiny.strategies.base import Strategy as Strategy
    from fedtiny.update_plan import UpdatePlan as UpdatePlan
    from fedtiny.values import Sgd as Sgd

# flwr, and Ray under it, read these when they begin: to tell nobody, and to ask for no updates.
# They stand here because a module of the user's own may load flwr wherever it is named.
os.environ.update(
    FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", RAY_USAGE_STATS_ENABLED="0"
)

# Loaded on first use: a device that imports fedtiny must not pay for the simulator.
_HOMES = {
    "Learner": "fedtiny.device.learner",
    "compile": "fedtiny.engine.compile",
    "Program": "fedtiny.engine.program",
    "BudgetError": "fedtiny.errors",
    "FedtinyError": "fedtiny.errors",
    "Experiment": "fedtiny.experiment",
    "Result": "fedtiny.simulator.run",
    "simulate": "fedtiny.simulator.run",
    "Strategy": "fedtiny.strategies.base",
    "Sgd": "fedtiny.values",
    "UpdatePlan": "fedtiny.update_plan",
}

__all__ = [  # noqa: RUF022 - the order in which a reader meets them
    "compile", "Program", "Learner", "UpdatePlan", "Sgd", "Strategy", "Experiment", "simulate",
    "Result", "BudgetError", "FedtinyError",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedtiny' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

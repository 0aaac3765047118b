"""Where a run stands between its rounds: what a checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.rounds.drop_out import DropOut
from fedtiny.rounds.ledger import Ledger
from fedtiny.runs import Checkpoint
from fedtiny.simulator.flights import Flights
from fedtiny.simulator.keeping import Keeping
from fedtiny.simulator.under_way import UnderWay
from fedtiny.strategies import calls

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedtiny.experiment.workload import Workload
    from fedtiny.strategies.base import State
    from fedtiny.tensors import Float32, Int8


@dataclass(eq=False)
class Standing:
    """``states`` are those of the devices' sessions; ``masks`` and ``models`` name the mask and the
    model that each device holds, 0 before the first (no columns where nothing is pruned);
    ``version`` is the model's."""

    model: Float32
    state: State
    states: Int8
    keeping: Keeping
    masks: npt.NDArray[np.uint64]
    models: npt.NDArray[np.uint64]
    round: int = 0
    version: int = 0
    now: float = 0.0
    flights: Flights = field(default_factory=Flights.none)
    ledger: Ledger = field(default_factory=Ledger)
    drop_out: DropOut = field(default_factory=DropOut)
    under_way: UnderWay = field(default_factory=UnderWay)

    @classmethod
    def at_start(cls, work: Workload) -> Standing:
        """Before the first round."""
        devices = work.experiment.fleet.devices
        return cls(
            model=work.initial,
            state=calls.start(work.strategy, work.layout, work.initial),
            states=np.zeros(devices, np.int8),
            keeping=Keeping(devices, _most(work)),
            masks=np.zeros(devices if work.prunes else 0, np.uint64),
            models=np.zeros(devices if work.prunes else 0, np.uint64),
        )

    @classmethod
    def restored(cls, work: Workload, checkpoint: Checkpoint) -> Standing:
        """The inverse of `checkpoint`."""
        arrays, values = checkpoint.arrays, checkpoint.values
        kept = {k.removeprefix("state."): a for k, a in arrays.items() if k.startswith("state.")}
        return cls(
            model=arrays["model"],
            state={**values["state"], **kept},
            states=arrays["sessions"],
            keeping=Keeping.restored(work.experiment.fleet.devices, _most(work), arrays),
            masks=arrays["masks"],
            models=arrays["models"],
            round=checkpoint.round,
            version=int(values["version"]),
            now=float(values["now"]),
            flights=Flights(*(arrays[f"flights.{f.name}"] for f in fields(Flights))),
            ledger=Ledger.from_json(values["ledger"]),
            drop_out=DropOut(
                **values["drop_out"],
                devices=arrays["drop_out.devices"],
                out=arrays["drop_out.out"],
            ),
            under_way=UnderWay.restored(work, arrays, values["under_way"]),
        )

    def checkpoint(self) -> Checkpoint:
        """All of it, in arrays and plain values."""
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "model": self.model, "sessions": self.states, "masks": self.masks,
            "models": self.models,
        }  # fmt: skip
        arrays |= {f"flights.{f.name}": getattr(self.flights, f.name) for f in fields(Flights)}
        arrays |= {f"state.{k}": v for k, v in self.state.items() if isinstance(v, np.ndarray)}
        arrays |= {f"drop_out.{name}": getattr(self.drop_out, name) for name in ("devices", "out")}
        arrays |= self.keeping.arrays()
        arrays |= self.under_way.arrays(self._going_on)
        values = {
            "now": self.now,
            "version": self.version,
            "state": {k: v for k, v in self.state.items() if not isinstance(v, np.ndarray)},
            "ledger": self.ledger.to_json(),
            "under_way": self.under_way.values(self._going_on),
            "drop_out": {n: getattr(self.drop_out, n) for n in ("share", "first", "lost", "until")},
        }
        return Checkpoint(self.round, arrays, values)

    @property
    def _going_on(self) -> list[int]:
        """The rounds whose leases may count in later ones."""
        return [t for t in self.flights.rounds if t in self.under_way.rounds]


def _most(work: Workload) -> int:
    """How many devices will ever train, at most."""
    experiment = work.experiment
    training = experiment.fleet.devices - experiment.held_out
    return min(training, experiment.run.rounds * work.strategy.cohort)

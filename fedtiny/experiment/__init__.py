"""One experiment: model, data, devices, strategy, fleet and run, from one TOML file.

The same file is simulated and deployed. What each section may say stands in `schema`.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedtiny import references
from fedtiny.data.tasks import build_task
from fedtiny.engine.compile import Compilable, built_net
from fedtiny.engine.quantize import FLOAT32, INT8
from fedtiny.errors import ExperimentError, FedtinyError, did_you_mean
from fedtiny.experiment import reading
from fedtiny.experiment.online import contradictions as _online_contradictions
from fedtiny.experiment.quantising import Ranged
from fedtiny.experiment.reading import Keys, Origin, Table, dotted, kinds
from fedtiny.experiment.schema import (
    Attack,
    Board,
    Budget,
    Data,
    Device,
    Evaluation,
    Fleet,
    Model,
    Online,
    Pretrain,
    Run,
)
from fedtiny.experiment.writing import write_toml
from fedtiny.registry.profiles import BOARDS, BoardProfile, board
from fedtiny.strategies import calls
from fedtiny.strategies.base import FleetFacts, Strategy
from fedtiny.strategies.table import build as build_strategy
from fedtiny.update_plan import AUTO

if TYPE_CHECKING:
    from fedtiny.data.tables import Task
    from fedtiny.layout import Layout

_KEYS = ("seed", "seeded")
_SECTIONS = (
    "model", "data", "device", "pretrain", "strategy", "fleet", "run", "attack", "evaluate",
    "online",
)  # fmt: skip
_FIGURES = {
    "ram": "ram_bytes", "flash": "flash_bytes", "macs_per_s": "macs_per_s",
    "downlink": "downlink_bps", "uplink": "uplink_bps", "latency": "latency_s",
    "active_w": "active_w", "idle_w": "idle_w", "radio_w": "radio_w",
}  # fmt: skip
"""The figure of a `BoardProfile` that a key of ``[device.NAME]`` gives."""


@dataclass(frozen=True)
class Experiment:
    """Everything that decides what a run does.

    Attributes:
        seed: Keys every random number of the run.
        seeded: A deployed run draws by the seed too, and decides as the simulated one; without it
            the operating system draws, so that nobody can foresee who is asked.
        boards: What ``[device.NAME]`` says, by profile.
        pretrain: How the model is trained before the first round, if it is.
        attack: Which devices of a simulated fleet lie, and how, if some do.
        strategy: ``[strategy]`` as written: the name or build of a strategy and its fields.
        evaluate: The named ways in which held-out devices adapt before they are judged.
        online: The named ways in which devices meet a stream after the last round.
        given: The tables as they were written, settings included.
        origin: The file's name, its text, and the settings.
    """

    seed: int
    seeded: bool
    model: Model
    data: Data
    device: Device
    boards: Mapping[str, Table]
    pretrain: Pretrain | None
    strategy: Table
    fleet: Fleet
    run: Run
    attack: Attack | None
    evaluate: Mapping[str, Evaluation]
    online: Mapping[str, Online]
    given: Table
    origin: Origin

    # ---- making one ----

    @classmethod
    def load(cls, path: str | Path) -> Experiment:
        """The experiment of a file. Modules beside the file can be named in it."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ExperimentError(f"{path} cannot be read: {error}") from None
        return cls.parse(text, str(path), str(path.resolve().parent))

    @classmethod
    def parse(cls, text: str, name: str = "the experiment", folder: str = "") -> Experiment:
        """The experiment of a TOML text; what it names is looked for in the folder."""
        return cls._read(reading.parse_toml(text, name), Origin(name, folder, text))

    @classmethod
    def of(cls, source: Experiment | Table | str | Path) -> Experiment:
        """The experiment itself, or that of its tables, or that of a file."""
        if isinstance(source, Experiment):
            return source
        if isinstance(source, Mapping):
            return cls._read(source, Origin())
        return cls.load(source)

    def override(self, *settings: str) -> Experiment:
        """The experiment with settings such as ``run.rounds=10`` or ``strategy.name=fedavg``."""
        given: Table = self.given
        for setting in settings:
            given = reading.changed(given, setting)
        origin = replace(self.origin, settings=self.origin.settings + settings)
        return self._read(given, origin)

    @classmethod
    def _read(cls, given: Table, origin: Origin) -> Experiment:
        for key in given:
            if key not in _KEYS + _SECTIONS:
                raise origin.unknown((key,), _KEYS + _SECTIONS)
        reading.check_finite(given, origin)
        tables = {key: given.get(key, {}) for key in _SECTIONS}
        top = reading.read(_Top, {k: v for k, v in given.items() if k in _KEYS}, origin, ())
        device, boards = _read_device(tables["device"], origin)
        experiment = cls(
            seed=top.seed,
            seeded=top.seeded,
            model=_read_named(Model, tables["model"], origin, "model"),
            data=_read_named(Data, tables["data"], origin, "data"),
            device=device,
            boards=boards,
            pretrain=_read_optional(Pretrain, given, origin, "pretrain"),
            strategy=_read_strategy(tables["strategy"], origin),
            fleet=reading.read(Fleet, tables["fleet"], origin, ("fleet",)),
            run=reading.read(Run, tables["run"], origin, ("run",)),
            attack=_read_optional(Attack, given, origin, "attack"),
            evaluate=_read_evaluate(tables["evaluate"], origin),
            online=_read_online(given.get("online"), origin),
            given=given,
            origin=origin,
        )
        for keys, message in _contradictions(experiment):
            raise origin.error(keys, message)
        return experiment

    # ---- the devices ----

    @property
    def held_out(self) -> int:
        """How many devices never train."""
        fleet = self.fleet
        return fleet.devices // 10 if fleet.held_out is None else fleet.held_out

    def profile(self, name: str) -> BoardProfile:
        """The board of that name, with the figures that the experiment gives it."""
        said = self.boards.get(name, {})
        known = board(said.get("like", name))
        figures = {_FIGURES[key]: said[key] for key in said if key in _FIGURES}
        if "like" not in said:  # of a known board, ram and flash are budgets
            figures = {k: v for k, v in figures.items() if k not in ("ram_bytes", "flash_bytes")}
        return replace(known.changed("the experiment", **figures), name=name)

    def budget(self, name: str) -> Budget:
        """What a Program for that profile is compiled for."""
        said = {k: v for k, v in self.boards.get(name, {}).items() if k in kinds(Device)}
        device, whole = replace(self.device, **said), self.profile(name)
        return Budget(
            ram_bytes=whole.ram_bytes if device.ram is None else device.ram,
            flash_bytes=whole.flash_bytes if device.flash is None else device.flash,
            reserve_bytes=device.reserve,
            batch=device.batch,
            plan=device.plan,
            dtype=device.dtype,
            head=device.head if device.dtype == INT8 else FLOAT32,
            density=device.density,
            patches=device.patches,
        )

    @property
    def densities(self) -> tuple[float, ...]:
        """Those that the profiles of the fleet have, ascending, each once."""
        return tuple(sorted({self.budget(name).density for name in self.fleet.profiles}))

    @property
    def dtypes(self) -> set[str]:
        """Those that the profiles of the fleet have."""
        return {self.budget(name).dtype for name in self.fleet.profiles}

    # ---- what it names ----

    def find_file(self, name: str) -> Path:
        """A file that the experiment names: beside its own, unless the name is absolute."""
        return Path(self.folder) / name

    def build_net(self) -> Compilable:
        """The net of ``[model]``, with ranges of its activations if some device is int8; its errors
        name the line as well."""
        name, arguments = self.model.build, self.model.arguments
        reference = name if ":" in name else f"fedtiny.engine.zoo:{name}"
        with self._blaming("model", {"build": name, **arguments}):
            net = built_net(lambda: references.call(reference, arguments), self.seed)
        if INT8 not in self.dtypes:
            return net
        with self._blaming("device", {"dtype": INT8}):
            return Ranged.of(net)

    def build_task(self) -> Task:
        """The task of ``[data]``; its errors name the line as well."""
        data, fleet = self.data, self.fleet
        with self._blaming("data", self.given.get("data", {})):
            prepared = data.preparation
            return build_task(data.source, data.arguments, fleet.devices, self.held_out, prepared)

    def build_strategy(self) -> Strategy:
        """The strategy of ``[strategy]``; its errors name the line as well."""
        with self._blaming("strategy", self.strategy):
            strategy = build_strategy(self.strategy)
        for keys, message in _cohort_contradictions(self, strategy.cohort):
            raise self.origin.error(keys, message)
        return strategy

    def local(self, strategy: Strategy, layout: Layout) -> tuple[str, ...]:
        """What the strategy leaves on the devices; its errors name the line as well."""
        with self._blaming("strategy", self.strategy):
            return calls.local(strategy, layout)

    def fit(self, strategy: Strategy, fleet: FleetFacts) -> Strategy:
        """The strategy, fitted to this fleet; its errors name the line as well."""
        with self._blaming("strategy", self.strategy):
            return calls.fitted(strategy, fleet)

    @contextmanager
    def _blaming(self, section: str, table: Table) -> Iterator[None]:
        """Errors met here are of the line that gives the key which they name, or of the section."""
        self._add_folder()
        try:
            yield
        except FedtinyError as error:  # stays of its kind, with the figures that it carries
            error.args = (f"{self._place(section, table, error)}: {error}",)
            raise
        except Exception as error:
            told = f"{self._place(section, table, error)}: {references.cause(error)}"
            raise ExperimentError(told) from error

    def _place(self, section: str, table: Table, error: Exception) -> str:
        return self.origin.place((section, *_named(table, str(error))))

    def _add_folder(self) -> None:
        # At the end: a file beside the experiment must not hide an installed module.
        if self.folder and self.folder not in sys.path:
            sys.path.append(self.folder)

    # ---- writing it down ----

    @property
    def folder(self) -> str:
        """Where the modules and files that it names are looked for; empty: where we are."""
        return self.origin.folder

    @property
    def text(self) -> str:
        """The file as it was written, or `to_toml` when settings changed it or there was none."""
        return self.to_toml() if self.origin.settings or not self.origin.text else self.origin.text

    def to_json(self) -> dict[str, Any]:
        """Every value, defaults included, in plain types; `of` reads it again."""
        device = _plain(self.device) | {name: dict(said) for name, said in self.boards.items()}
        return {
            "seed": self.seed,
            "seeded": self.seeded,
            "model": _inline(self.model),
            "data": _inline(self.data),
            "device": device,
            **({"pretrain": _plain(self.pretrain)} if self.pretrain else {}),
            "strategy": dict(self.strategy),
            "fleet": _plain(self.fleet) | {"held_out": self.held_out},
            "run": _plain(self.run),
            **({"attack": _plain(self.attack)} if self.attack else {}),
            "evaluate": _each_plain(self.evaluate),
            **({"online": _each_plain(self.online)} if self.online else {}),
        }

    def to_toml(self) -> str:
        """`to_json` as a TOML text."""
        return write_toml(self.to_json())

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all that can change a result."""
        document = self.to_json()
        del document["fleet"]["threads"]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Top(reading.Section):
    seed: reading.Seed = 0
    seeded: reading.Flag = False


# ---- sections that are more than one dataclass -----------------------------------------------


Named = TypeVar("Named", Model, Data)


def _read_named(section: type[Named], table: Any, origin: Origin, name: str) -> Named:
    """A section whose other keys are the arguments of what it names."""
    if not isinstance(table, Mapping):
        return reading.read(section, table, origin, (name,))
    keys = kinds(section).keys() - {"arguments"}
    own = {key: value for key, value in table.items() if key in keys}
    arguments = {key: value for key, value in table.items() if key not in keys}
    return replace(reading.read(section, own, origin, (name,)), arguments=arguments)


def _read_device(table: Any, origin: Origin) -> tuple[Device, dict[str, Table]]:
    if not isinstance(table, Mapping):
        return reading.read(Device, table, origin, ("device",)), {}
    named = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    general = {key: value for key, value in table.items() if key not in named}
    device = reading.read(Device, general, origin, ("device",))
    known = {**kinds(Device), **kinds(Board)}
    boards = {k: reading.read_values(known, v, origin, ("device", k)) for k, v in named.items()}
    return device, boards


Optional = TypeVar("Optional", Pretrain, Attack)


def _read_optional(
    section: type[Optional], given: Table, origin: Origin, name: str
) -> Optional | None:
    table = given.get(name)
    return None if table is None else reading.read(section, table, origin, (name,))


def _read_strategy(table: Any, origin: Origin) -> Table:
    if not isinstance(table, Mapping) or ("name" in table) == ("build" in table):
        message = "give [strategy] either a name or build = 'module:object'"
        raise origin.error(("strategy",), message)
    return dict(table)


def _read_evaluate(table: Any, origin: Origin) -> dict[str, Evaluation]:
    if not isinstance(table, Mapping):
        raise origin.error(("evaluate",), "write a section [evaluate.NAME] for each way to adapt")
    return {
        name: reading.read(Evaluation, section, origin, ("evaluate", name))
        for name, section in table.items()
    }


def _read_online(table: Any, origin: Origin) -> dict[str, Online]:
    """One stream, or for each ``[online.NAME]`` one that takes the keys of ``[online]``, too."""
    if table is None:
        return {}
    if not isinstance(table, Mapping):
        return {"online": reading.read(Online, table, origin, ("online",))}
    named = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    general = {key: value for key, value in table.items() if key not in named}
    if not named:
        return {"online": reading.read(Online, general, origin, ("online",))}
    reading.read_values(kinds(Online), general, origin, ("online",))
    return {
        name: reading.read(Online, {**general, **own}, origin, ("online", name))
        for name, own in named.items()
    }


# ---- what no single key can tell -------------------------------------------------------------


def _contradictions(e: Experiment) -> Iterator[tuple[Keys, str]]:
    yield from _fleet_contradictions(e)
    yield from _attack_contradictions(e)
    yield from _online_contradictions(e)
    yield from _head_contradictions(e)
    for name in {**e.boards, **e.fleet.profiles}:
        yield from _board_contradictions(e, name)


def _fleet_contradictions(e: Experiment) -> Iterator[tuple[Keys, str]]:
    fleet = e.fleet
    if e.held_out >= fleet.devices:
        message = f"{e.held_out} of {fleet.devices} devices are held out: none is left to train"
        yield ("fleet", "held_out"), message
    if fleet.traces is not None and fleet.availability != "traces":
        yield ("fleet", "traces"), "traces are only read with fleet.availability = 'traces'"
    if not e.held_out and not all(asked.trained for asked in e.evaluate.values()):
        yield ("evaluate",), "nobody is held out to be evaluated; raise fleet.held_out"


def _head_contradictions(e: Experiment) -> Iterator[tuple[Keys, str]]:
    if e.device.head == INT8 and INT8 not in (e.device.dtype, *e.dtypes):
        yield ("device", "head"), "device.head = 'int8' is for dtype = 'int8'; no profile has that"


def _attack_contradictions(e: Experiment) -> Iterator[tuple[Keys, str]]:
    attack = e.attack
    if attack and attack.kind == "label-flip" and attack.scale is not None:
        message = "attack.scale is for the deltas of the other kinds; a label has no size"
        yield ("attack", "scale"), message


def _cohort_contradictions(e: Experiment, cohort: int) -> Iterator[tuple[Keys, str]]:
    training = e.fleet.devices - e.held_out
    if cohort > training:
        yield (
            ("strategy", "cohort"),
            (
                f"a cohort of {cohort} is more than the {training} devices that train "
                f"({e.fleet.devices} less {e.held_out} held out)"
            ),
        )
    if e.run.minimum > cohort:
        yield ("run", "minimum"), f"run.minimum = {e.run.minimum} is more than the cohort, {cohort}"


def _board_contradictions(e: Experiment, name: str) -> Iterator[tuple[Keys, str]]:
    said = e.boards.get(name, {})
    keys = ("device", name) if said else ("fleet", "profiles", name)
    known = said.get("like", name)
    if known not in BOARDS:
        yield (
            keys,
            (
                f"unknown board {known!r}; {did_you_mean(known, BOARDS)}there are "
                f"{', '.join(BOARDS)}; "
                f"[device.{name}] with like = 'cortex-m4' makes one of your own"
            ),
        )
        return
    budget = e.budget(name)
    if budget.dtype == INT8 and budget.density < 1:
        where = next((place for place in (keys, ("device",)) if place[0] == "device"), keys)
        yield (
            where,
            f"{name}: int8 stores every weight, and density is {budget.density:g}; set it to 1",
        )
    if budget.plan == AUTO and budget.density < 1:
        yield (
            ("device",),
            f"{name}: plan = 'auto' is for density = 1, got {budget.density:g}; name a plan",
        )
    if budget.patches != 1 and budget.density < 1:
        yield (
            ("device",),
            f"{name}: patches are for density = 1, got {budget.density:g}; set patches to 1",
        )
    whole = e.profile(name)
    for key, most in (("ram", whole.ram_bytes), ("flash", whole.flash_bytes)):
        if said.get(key, 0) > most:
            yield (
                (*keys, key),
                (
                    f"{dotted((*keys, key))} = {said[key]:,} B, but a {name} has {most:,} B; "
                    f"make a board of your own with like = {name!r}"
                ),
            )


def _named(table: Table, message: str) -> Keys:
    """The key that a message is about, by its own name or else by its value; none if unclear."""
    keys = [k for k in table if repr(k) in message or re.search(rf"\b{re.escape(k)} = ", message)]
    values = [k for k, v in table.items() if isinstance(v, str) and repr(v) in message]
    return tuple((keys + values)[:1])


# ---- plain types -----------------------------------------------------------------------------


def _plain(section: reading.Section) -> dict[str, Any]:
    values = ((f.name, getattr(section, f.name)) for f in fields(section))
    return {
        name: _plain(value) if isinstance(value, reading.Section) else value
        for name, value in values
        if value is not None
    }


def _each_plain(sections: Mapping[str, reading.Section]) -> dict[str, Any]:
    return {name: _plain(section) for name, section in sections.items()}


def _inline(section: Model | Data) -> dict[str, Any]:
    plain = _plain(section)
    return {**plain.pop("arguments"), **plain}

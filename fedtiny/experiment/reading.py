"""From TOML tables to frozen dataclasses, with errors that name the line.

A dataclass is its own schema: each field is annotated with a `Kind`, which says in words what is
expected and reads it. Nothing here knows what an experiment is.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from fedtiny.errors import ExperimentError
from fedtiny.values import parse_bytes

T = TypeVar("T")
Path = tuple[str, ...]
"""The keys from the top of the file down to a value."""
Table = Mapping[str, Any]


# ---- where a value was given -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an experiment was written: the file's name and text, then ``key=value`` settings."""

    name: str = "the experiment"
    text: str = ""
    settings: tuple[str, ...] = ()

    def place(self, path: Path) -> str:
        """The setting or the line that holds the value, or its nearest table."""
        for setting in reversed(self.settings):
            if _holds(parse_setting(setting), path):
                return f"--set {setting}"
        line = line_of(self.text, path)
        return f"{self.name}, line {line}" if line else self.name

    def error(self, path: Path, message: str) -> ExperimentError:
        """The error to raise about the value at this path."""
        return ExperimentError(f"{self.place(path)}: {message}")

    def unknown(self, path: Path, known: Iterable[str]) -> ExperimentError:
        """The error about a key that is not among those known, with the nearest of them."""
        known = list(known)
        nearest = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        where = f"[{'.'.join(path[:-1])}]" if path[:-1] else "the top level"
        return self.error(path, f"unknown key {dotted(path)!r}; {hint}{where} has {_listed(known)}")


def dotted(path: Path) -> str:
    """``run.rounds``."""
    return ".".join(path)


def line_of(text: str, path: Path) -> int | None:
    """The line on which the statement begins that gives the value, or else its nearest table.

    tomllib tells no lines, so ever longer beginnings of the text are parsed: the value was given
    by the statement that ends the first beginning which holds it.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    found: dict[int, int] = {}
    start = 1
    for count in range(1, len(lines) + 1):
        try:
            table = tomllib.loads("\n".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            continue  # in the middle of a statement
        for depth in range(1, len(path) + 1):
            if depth not in found and _holds(table, path[:depth]):
                found[depth] = start
        start = count + 1
    return found[max(found)] if found else None


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """The tables of a TOML text; raises ExperimentError with its name, line and column."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ExperimentError(f"{name}: not a TOML file: {error}") from None


def parse_setting(setting: str) -> dict[str, Any]:
    """The tables of ``run.rounds=10``. The value is TOML; what is none is taken as a text."""
    key, equals, value = setting.partition("=")
    if not equals:
        raise ExperimentError(f"--set {setting}: write KEY=VALUE, such as run.rounds=10")
    for candidate in (value, json.dumps(value.strip(), ensure_ascii=False)):
        try:
            return tomllib.loads(f"{key} = {candidate}")
        except tomllib.TOMLDecodeError:
            continue
    raise ExperimentError(f"--set {setting}: {key!r} is not a key such as run.rounds")


def merged(base: Table, changes: Table) -> dict[str, Any]:
    """``base`` with the values of ``changes``, table by table."""
    result = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            value = merged(result[key], value)
        result[key] = value
    return result


def _holds(table: Any, path: Path) -> bool:
    for key in path:
        if not isinstance(table, Mapping) or key not in table:
            return False
        table = table[key]
    return True


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "no keys"


# ---- kinds of values -------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What a field takes: in words, and as a function that raises ValueError for the rest."""

    expected: str
    read: Callable[[Any], Any]


def _number(low: float, high: float, *, open_low: bool = False) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        number = _as(float, value)
        if not low <= number <= high or (open_low and number == low) or math.isinf(number):
            raise ValueError
        return number

    return read


def _integer(low: int, high: float = math.inf) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        number: int = _as(int, value)
        if not low <= number <= high:
            raise ValueError
        return number

    return read


def _as(kind: type[T], value: Any) -> T:
    """The value if it is of that type; an integer is also a float, a boolean is no number."""
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError
    return value


def _matching(pattern: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if re.fullmatch(pattern, _as(str, value)) is None:
            raise ValueError
        return str(value)

    return read


def _in_units(units: Mapping[str, float]) -> Callable[[Any], float]:
    """Numbers with one of the units; a plain number is in the unit of factor 1."""
    scale: dict[str, float] = {"": 1.0, **units}

    def read(value: Any) -> float:
        text = value if isinstance(value, str) else str(_as(float, value))
        match = re.fullmatch(r"\s*([0-9.eE+-]+?)\s*([a-zA-Z/]*)\s*", text)
        if match is None or match[2] not in scale:
            raise ValueError
        return _number(0, math.inf)(float(match[1]) * scale[match[2]])

    return read


def _size(value: Any) -> int:
    if isinstance(value, float):
        raise ValueError
    try:
        return parse_bytes(value)
    except ExperimentError:
        raise ValueError from None


def _shares(value: Any) -> dict[str, float]:
    share = _number(0, 1, open_low=True)
    shares = {name: share(part) for name, part in value.items()} if value else {}
    if not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise ValueError(f"the shares add up to {sum(shares.values()):.6g}")
    return shares


def _table(value: Any) -> dict[str, Any]:
    return dict(_as(dict, value))


_SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BITS = {"bit/s": 1.0, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}

Text = Annotated[str, Kind("a text that is not empty", _matching(r"(?s).+"))]
Flag = Annotated[bool, Kind("true or false", lambda value: _as(bool, value))]
Natural = Annotated[int, Kind("an integer >= 0", _integer(0))]
Positive = Annotated[int, Kind("an integer >= 1", _integer(1))]
Seed = Annotated[int, Kind("an integer from 0 to 2^64 - 1", _integer(0, 2**64 - 1))]
Rate = Annotated[float, Kind("a number > 0", _number(0, math.inf, open_low=True))]
Factor = Annotated[float, Kind("a number >= 1", _number(1, math.inf))]
Probability = Annotated[float, Kind("a number from 0 to 1", _number(0, 1))]
Watts = Annotated[float, Kind("a number of watts >= 0", _number(0, math.inf))]
Seconds = Annotated[
    float, Kind("a duration such as '100ms', '10s', '5min' or '2h'", _in_units(_SECONDS))
]
BitsPerSecond = Annotated[
    float, Kind("a rate such as '250kbit/s' or '10Mbit/s'", _in_units(_BITS))
]
Bytes = Annotated[int, Kind("a size such as 4096, '256KiB' or '1MB'", _size)]
Shares = Annotated[
    Mapping[str, float], Kind("a table of profile = share whose shares add up to 1", _shares)
]
Arguments = Annotated[Mapping[str, Any], Kind("a table", _table)]
Plan = Annotated[
    str,
    Kind(
        "one of 'all', 'biases', 'last:2', 'named:fc.*,head.bias'",
        _matching(r"all|biases|last:[1-9]\d*|named:.+"),
    ),
]


# ---- reading ---------------------------------------------------------------------------------


class Section:
    """A frozen dataclass that is read from one table of the file."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


S = TypeVar("S", bound=Section)


def read(section: type[S], table: Any, origin: Origin, path: Path) -> S:
    """The section from its table. Raises ExperimentError for the first key that is wrong."""
    values = read_values(kinds(section), table, origin, path)
    for field in fields(section):
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in values:
            key = dotted((*path, field.name))
            raise origin.error(path, f"{key} is missing; give {kinds(section)[field.name].expected}")
    return section(**values)


def read_values(
    known: Mapping[str, Kind], table: Any, origin: Origin, path: Path
) -> dict[str, Any]:
    """Every value of the table, read by the kind of its key."""
    if not isinstance(table, Mapping):
        raise origin.error(path, f"{dotted(path)} = {_shown(table)} is not a table [{dotted(path)}]")
    for key in table:
        if key not in known:
            raise origin.unknown((*path, key), known)
    return {key: _value(known[key], v, origin, (*path, key)) for key, v in table.items()}


@cache
def kinds(section: type[Section]) -> dict[str, Kind]:
    """The kind of each field, in their order."""
    hints = get_type_hints(section, include_extras=True)
    return {field.name: _kind(hints[field.name]) for field in fields(section)}


def _kind(hint: Any) -> Kind:
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return Kind(" or ".join(map(repr, choices)), lambda value: choices[choices.index(value)])
    for part in get_args(hint):
        if isinstance(part, Kind):
            return part
        if get_origin(part) is Annotated:  # of "X | None": what is not given is None
            return _kind(part)
    raise TypeError(f"{hint} has no Kind")


def _value(kind: Kind, value: Any, origin: Origin, path: Path) -> Any:
    try:
        return kind.read(value)
    except (ValueError, AttributeError) as error:
        detail = f" ({error})" if str(error).startswith("the shares") else ""
        message = f"{dotted(path)} = {_shown(value)} is not {kind.expected}{detail}"
        raise origin.error(path, message) from None


def _shown(value: Any) -> str:
    return repr(dict(value)) if isinstance(value, Mapping) else repr(value)

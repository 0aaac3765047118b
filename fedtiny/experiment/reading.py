"""From TOML tables to frozen dataclasses, with errors that name the line.

A dataclass is its own schema: each field is annotated with a `Kind`, which says in words what is
expected and reads it. Nothing here knows what an experiment is.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from fedtiny.errors import CompileError, ExperimentError, did_you_mean
from fedtiny.update_plan import AUTO, UpdatePlan
from fedtiny.values import parse_bytes

T = TypeVar("T")
Keys = tuple[str, ...]
"""From the top of the file down to a value: ``("run", "rounds")``."""
Table = Mapping[str, Any]


# ---- where a value was given -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an experiment was written: a file's name, folder and text, then ``KEY=VALUE`` settings.

    Modules and files that the experiment names are looked for in the folder.
    """

    name: str = "the experiment"
    folder: str = ""
    text: str = ""
    settings: tuple[str, ...] = ()

    def place(self, keys: Keys) -> str:
        """The setting or the line that gives the value, or else its nearest table."""
        for setting in reversed(self.settings):
            if _holds(changed({}, setting), keys):
                return f"--set {setting}"
        line = line_of(self.text, keys)
        return f"{self.name}, line {line}" if line else self.name

    def error(self, keys: Keys, message: str) -> ExperimentError:
        """The error to raise about the value at these keys."""
        return ExperimentError(f"{self.place(keys)}: {message}")

    def unknown(self, keys: Keys, known: Collection[str]) -> ExperimentError:
        """The error about a key that is not among those known, with the nearest of them."""
        where = f"[{dotted(keys[:-1])}]" if keys[:-1] else "the top level"
        message = f"unknown key {dotted(keys)!r}; {did_you_mean(keys[-1], known)}{where} has "
        return self.error(keys, message + (", ".join(known) or "no keys"))


def dotted(keys: Keys) -> str:
    """``run.rounds``."""
    return ".".join(keys)


def line_of(text: str, keys: Keys) -> int | None:
    """The line on which the statement begins that gives the value, or else its nearest table.

    tomllib tells no lines, so ever longer beginnings of the text are parsed: a value was given by
    the statement that ends the first beginning which holds it.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    found: dict[int, int] = {}
    start = 1
    for count in range(1, len(lines) + 1):
        try:
            table = tomllib.loads("\n".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            continue  # in the middle of a statement
        for depth in range(len(found) + 1, len(keys) + 1):
            if _holds(table, keys[:depth]):
                found[depth] = start
        start = count + 1
    return found[max(found)] if found else None


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """The tables of a TOML text; raises ExperimentError with its name, line and column."""
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or an integer of too many digits
        raise ExperimentError(f"{name}: not a TOML file: {error}") from None


def changed(table: Table, setting: str) -> dict[str, Any]:
    """The table with a setting such as ``run.rounds=10`` made in it."""
    keys, value = parse_setting(setting)
    result = dict(table)
    inner = result
    for key in keys[:-1]:
        old = inner.get(key)
        inner[key] = dict(old) if isinstance(old, Mapping) else {}
        inner = inner[key]
    inner.pop(_INSTEAD_OF.get(keys, ""), None)
    inner[keys[-1]] = value
    return result


_INSTEAD_OF: Mapping[Keys, str] = {
    ("strategy", "name"): "build",
    ("strategy", "build"): "name",
}
"""A strategy is named in one of two ways: setting one takes the other back."""


def parse_setting(setting: str) -> tuple[Keys, Any]:
    """The keys and the value of ``KEY=VALUE``. A value that is not TOML is taken as a text."""
    key, equals, value = setting.partition("=")
    if not equals:
        raise ExperimentError(f"--set {setting}: write KEY=VALUE, such as run.rounds=10")
    try:
        table: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        message = f"--set {setting}: {key!r} is not a key such as run.rounds"
        raise ExperimentError(message) from None
    keys: Keys = ()
    while isinstance(table, Mapping):
        ((name, table),) = table.items()
        keys += (name,)
    try:
        return keys, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return keys, value.strip()


def _holds(table: Any, keys: Keys) -> bool:
    for key in keys:
        if not isinstance(table, Mapping) or key not in table:
            return False
        table = table[key]
    return True


# ---- kinds of values -------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What a field takes: in words, and as a function that refuses the rest.

    ``read`` raises ValueError, or ExperimentError with what is wrong in particular. A ``section``
    stands in its place where a value is a table with kinds of its own.
    """

    expected: str
    read: Callable[[Any], Any]
    section: type[Section] | None = None


def exactly(kind: type[T], value: Any) -> T:
    """The value if it is of that type. An integer is also a float; a boolean is no number."""
    if kind is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            raise ValueError from None
    if type(value) is not kind:
        raise ValueError
    return value


def number(low: float, high: float = math.inf, *, above: bool = False) -> Callable[[Any], float]:
    """Reads a finite float from ``low`` to ``high``; ``above`` leaves ``low`` itself out."""

    def read_number(value: Any) -> float:
        result = exactly(float, value)
        if not low <= result <= high or math.isinf(result) or (above and result == low):
            raise ValueError
        return result

    return read_number


def integer(low: int, high: float = math.inf) -> Callable[[Any], int]:
    """Reads an integer from ``low`` to ``high``."""

    def read_integer(value: Any) -> int:
        result = exactly(int, value)
        if not low <= result <= high:
            raise ValueError
        return result

    return read_integer


def matching(pattern: str) -> Callable[[Any], str]:
    """Reads a text that matches the whole regular expression."""

    def read_text(value: Any) -> str:
        text = exactly(str, value)
        if re.fullmatch(pattern, text) is None:
            raise ValueError
        return text

    return read_text


def in_units(units: Mapping[str, float], *, above: bool = False) -> Callable[[Any], float]:
    """Reads a number >= 0 (``above``: > 0) with one of the units; without, its factor is 1."""
    factors = {"": 1.0, **units}

    def read_quantity(value: Any) -> float:
        text = value if isinstance(value, str) else repr(exactly(float, value))
        match = re.fullmatch(r"\s*([\d.]+(?:e[+-]?\d+)?)\s*([a-zA-Z/]*)\s*", text)
        if match is None or match[2] not in factors:
            raise ValueError
        return number(0, above=above)(float(match[1]) * factors[match[2]])

    return read_quantity


def _bytes(value: Any) -> int:
    if type(value) not in (int, str):
        raise ValueError
    try:
        return parse_bytes(value)
    except ExperimentError:
        raise ValueError from None


def _shares(value: Any) -> dict[str, float]:
    share = number(0, 1, above=True)
    shares = {name: share(part) for name, part in exactly(dict, value).items()}
    if not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise ExperimentError(f"they add up to {sum(shares.values()):.6g}")
    return shares


def _plan(value: Any) -> str:
    text = exactly(str, value)
    if text == AUTO:
        return text
    try:
        UpdatePlan.parse(text)
    except CompileError as error:
        raise ExperimentError(str(error)) from None
    return text


def _patches(value: Any) -> int | str:
    return AUTO if value == AUTO else integer(1)(value)


_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BITS = {"bit/s": 1.0, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}
_SOME_TIME = "such as '100ms', '10s', '5min' or '2h'"

Text = Annotated[str, Kind("a text of one character or more", matching(r"(?s).+"))]
Flag = Annotated[bool, Kind("true or false", lambda value: exactly(bool, value))]
Natural = Annotated[int, Kind("an integer >= 0", integer(0))]
DeviceCount = Annotated[int, Kind("an integer from 1 to 2^31 - 1", integer(1, 2**31 - 1))]
Positive = Annotated[int, Kind("an integer >= 1", integer(1))]
Seed = Annotated[int, Kind("an integer from 0 to 2^64 - 1", integer(0, 2**64 - 1))]
Rate = Annotated[float, Kind("a number > 0", number(0, above=True))]
Probability = Annotated[float, Kind("a number from 0 to 1", number(0, 1))]
Density = Annotated[float, Kind("a number above 0, at most 1", number(0, 1, above=True))]
NonNegative = Annotated[float, Kind("a number >= 0", number(0))]
Seconds = Annotated[float, Kind(f"a duration {_SOME_TIME}", in_units(_SECONDS))]
Duration = Annotated[float, Kind(f"a duration > 0 {_SOME_TIME}", in_units(_SECONDS, above=True))]
BitsPerSecond = Annotated[
    float, Kind("a rate > 0 such as '250kbit/s' or '10Mbit/s'", in_units(_BITS, above=True))
]
Bytes = Annotated[int, Kind("a size such as 4096, '256KiB' or '1MB'", _bytes)]
Shares = Annotated[
    Mapping[str, float], Kind("a table of profile = share whose shares add up to 1", _shares)
]
Arguments = Annotated[Mapping[str, Any], Kind("a table", lambda value: exactly(dict, value))]
Plan = Annotated[
    str,
    Kind(
        "'auto', or 'all', 'biases', 'last:2' or 'named:fc.*,conv2.weight{in=1/4}', joined by '+'",
        _plan,
    ),
]
Patches = Annotated[int | str, Kind("an integer >= 1, or 'auto'", _patches)]


def check_finite(value: Any, origin: Origin, keys: Keys = ()) -> None:
    """Raises ExperimentError for the first NaN or infinity, at whatever depth; 1e400 is one."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_finite(inner, origin, (*keys, key))
    elif isinstance(value, list | tuple):
        for inner in value:
            check_finite(inner, origin, keys)
    elif isinstance(value, float) and not math.isfinite(value):
        raise origin.error(keys, f"{dotted(keys)} = {value} is not a finite number")


# ---- reading ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Section:
    """What is read from one table of the file."""


S = TypeVar("S", bound=Section)


def read(section: type[S], table: Any, origin: Origin, keys: Keys) -> S:
    """The section from its table. Raises ExperimentError for the first key that is wrong."""
    known = kinds(section)
    values = read_values(known, table, origin, keys)
    for field in fields(section):
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in values:
            name = dotted((*keys, field.name))
            raise origin.error(keys, f"{name} is missing; give it {known[field.name].expected}")
    return section(**values)


def read_values(known: Mapping[str, Kind], table: Any, origin: Origin, keys: Keys) -> Table:
    """Every value of the table, read by the kind of its key."""
    if not isinstance(table, Mapping):
        raise origin.error(keys, f"{dotted(keys)} = {table!r} must be a table [{dotted(keys)}]")
    for key in table:
        if key not in known:
            raise origin.unknown((*keys, key), known)
    return {key: _value(known[key], value, origin, (*keys, key)) for key, value in table.items()}


def kinds(section: type[Section]) -> dict[str, Kind]:
    """The kind of each field, in their order."""
    hints = get_type_hints(section, include_extras=True)
    return {field.name: _kind(hints[field.name]) for field in fields(section)}


def _kind(hint: Any) -> Kind:
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        expected = " or ".join(map(repr, choices))
        return Kind(expected, lambda value: choices[choices.index(value)])
    if isinstance(hint, type) and issubclass(hint, Section):
        return Kind("a table", lambda value: exactly(dict, value), hint)
    parts = get_args(hint)
    # Annotated holds its Kind; "X | None", a value that may be left out, holds what X is.
    return next((part for part in parts if isinstance(part, Kind)), None) or _kind(parts[0])


def _value(kind: Kind, value: Any, origin: Origin, keys: Keys) -> Any:
    if kind.section is not None:
        return read(kind.section, value, origin, keys)
    message = f"{dotted(keys)} = {value!r} is not {kind.expected}"
    try:
        return kind.read(value)
    except ExperimentError as error:
        raise origin.error(keys, f"{message}: {error}") from None
    except ValueError:
        raise origin.error(keys, message) from None

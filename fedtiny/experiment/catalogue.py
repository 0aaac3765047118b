"""What can be said of a strategy before it runs: its paper, its parameters, and what they mean.

All of it stands where the strategy is written: the paper in the docstring of its file (or class),
a parameter's meaning in the ``Attributes`` of its class, or else in the sentence that names it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, replace
from typing import Any

from fedtiny import references
from fedtiny.errors import ExperimentError, StrategyError
from fedtiny.strategies.base import Strategy
from fedtiny.strategies.table import TABLE, is_flowers, reference_of

_CITATION = re.compile(
    r'(?P<authors>(?:[A-Z]\.[ -]?)+[A-Z][\w-]+[^"]*?), "(?P<title>[^"]+?),?",? '
    r"(?P<venue>[^\"]*?\b(?:19|20)\d\d)"
)
_ADAPTER = "fedtiny.flower.strategy"
_PLAIN = (int, float, bool, str)


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a strategy was published."""

    authors: str
    title: str
    venue: str

    @property
    def short(self) -> str:
        """``McMahan et al. 2017``."""
        first, *more = re.split(r",| and | et al", self.authors)
        others = " et al." if more else ""
        return f"{first.split()[-1]}{others} {self.venue[-4:]}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One key of ``[strategy]``; one that is ``required`` has no default."""

    name: str
    default: Any
    meaning: str
    required: bool = False


@dataclass(frozen=True)
class Entry:
    """One strategy, by its name in the table or as ``module:object``, which ``build`` is."""

    name: str
    build: str
    summary: str
    page: str
    paper: Paper | None
    parameters: tuple[Parameter, ...]

    @property
    def required(self) -> list[str]:
        """The parameters without which it cannot be built."""
        return [parameter.name for parameter in self.parameters if parameter.required]

    @classmethod
    def of(cls, name: str) -> Entry:
        """That of a name or of ``module:object``; StrategyError if there is none."""
        build = name if ":" in name else reference_of(name)
        try:
            made = references.load(build)
        except ExperimentError as error:
            raise StrategyError(str(error)) from error
        page, called = _page(made), getattr(made, "__name__", "")
        summary, paper = _summary(page, made), _paper(page, called)
        own = _plain(_doc(made).partition("\n\n")[0]) if _neighbours(made) else ""
        told = page if own in page else f"{own}\n\n{page}"
        return cls(name, build, summary, told, paper, tuple(_parameters(made)))


def entries() -> tuple[Entry, ...]:
    """All that ship, in the order of the table."""
    return tuple(map(Entry.of, TABLE))


# ---- the page --------------------------------------------------------------------------------


def _page(made: Any) -> str:
    """The docstring of its file; of a file without one, of the object."""
    module = inspect.getmodule(made if hasattr(made, "__name__") else type(made))
    return _plain((inspect.getdoc(module) if module else "") or _doc(made))


def _doc(made: Any) -> str:
    """The docstring of the object; not the one that a dataclass has made up."""
    text = inspect.getdoc(made) or ""
    return "" if text.startswith(f"{getattr(made, '__name__', '')}(") else text


def _summary(page: str, made: Any) -> str:
    """The title of the page, if that is about this strategy alone, else what its class says."""
    name, colon, told = " ".join(page.partition("\n\n")[0].split()).partition(": ")
    if not colon or (_neighbours(made) and name.partition(" ")[0] != made.__name__):
        told = _plain(" ".join(_doc(made).split()))
    told = re.split(r"[.;] |[.;]?$", told)[0]
    first = told.partition(" ")[0]
    is_a_name = first.lower() in TABLE or first[1:] != first[1:].lower()
    return told if is_a_name else told[:1].lower() + told[1:]


def _neighbours(made: Any) -> list[type]:
    """Other strategies that are written in the same file."""
    own = vars(inspect.getmodule(made)).values() if inspect.isclass(made) else ()
    kinds = (kind for kind in own if inspect.isclass(kind) and kind.__module__ == made.__module__)
    return [k for k in kinds if k is not made and (issubclass(k, Strategy) or is_flowers(k))]


def _plain(text: str) -> str:
    return text.replace("`", "")


def _paper(page: str, name: str) -> Paper | None:
    """What the page cites; of several papers the one that is said to be of the class."""
    text = " ".join(page.split())
    cited = list(_CITATION.finditer(text))
    if not cited:
        return None
    ends = [*(found.start() for found in cited[1:]), len(text)]
    own = [
        found for found, end in zip(cited, ends, strict=True)
        if re.search(rf"\([^)]*\b{name}\b[^)]*\)", text[found.end() : end])
    ]  # fmt: skip
    return Paper(*(own or cited)[0].group("authors", "title", "venue"))


# ---- parameters ------------------------------------------------------------------------------


def _parameters(made: Any) -> Iterator[Parameter]:
    """Those of its own first, then those of its bases."""
    if inspect.isclass(made) and issubclass(made, Strategy):
        known = {field.name: field for field in fields(made) if _is_given(field)}
        for kind in made.__mro__:
            for name in [name for name in known if name in _declared(kind)]:
                default = known.pop(name).default
                required = default is MISSING
                yield Parameter(name, None if required else default, meaning(made, name), required)
    elif is_flowers(made):
        ours = tuple(_beside_flowers())
        # Of a name that both have, theirs is to be given under another.
        both = {parameter.name for parameter in ours}
        for theirs in _arguments(made):
            name = theirs.name
            yield replace(theirs, name=f"arguments.{name}") if name in both else theirs
        yield from ours
    elif inspect.isroutine(made) or inspect.isclass(made):
        yield from _arguments(made)


def _beside_flowers() -> Iterator[Parameter]:
    """Ours, beside what the constructor of a strategy of Flower's takes."""
    adapter, ours = (references.load(f"{_ADAPTER}:{name}") for name in ("FlowerStrategy", "OURS"))
    return (parameter for parameter in _parameters(adapter) if parameter.name in ours)


def _arguments(made: Any) -> Iterator[Parameter]:
    """Those of a function, or of a class of somebody else's."""
    for name, taken in inspect.signature(made).parameters.items():
        required = taken.default is inspect.Parameter.empty
        default = None if required else taken.default
        if taken.kind not in (taken.VAR_POSITIONAL, taken.VAR_KEYWORD):
            yield Parameter(name, default, _said_of(name, _doc(made)), required)


def _is_given(field: Field[Any]) -> bool:
    """Whether an experiment gives it: what `fitted` finds out is of another type."""
    return field.init and (field.default is MISSING or isinstance(field.default, (*_PLAIN, tuple)))


def _declared(kind: type) -> set[str]:
    """The fields that a class brings in; one that only changes a default does not."""
    before = {name for base in kind.__mro__[1:] for name in vars(base).get("__annotations__", ())}
    return set(vars(kind).get("__annotations__", ())) - before


def meaning(made: type, name: str) -> str:
    """What a field means, by the docstrings of the class and of its bases."""
    said = (_said_of(name, vars(kind).get("__doc__") or "") for kind in made.__mro__)
    return next(filter(None, said), "")


def _said_of(name: str, text: str) -> str:
    """Its line of the attributes, or of NumPy's style of them; or the sentence that names it."""
    text = inspect.cleandoc(text)
    for style in (rf"^ +{name}: (.*(?:\n {{8,}}.*)*)", rf"^{name} : .*((?:\n {{4,}}.*)+)"):
        if line := re.search(style, text, re.M):
            return _plain(" ".join(line[1].split()))
    body = " ".join(text.partition("Attributes:")[0].split())
    sentences = re.split(r"(?<=[.;]) (?=[A-Z`])", body)
    found = (_plain(each) for each in sentences if re.search(rf"``{name}``|``{name} =", each))
    return next(found, "")

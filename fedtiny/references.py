"""Objects of the user's own, named as ``module:object``."""

from __future__ import annotations

import dataclasses
import inspect
import traceback
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from fedtiny.errors import ExperimentError, did_you_mean

_PACKAGE = Path(__file__).parent


def load(reference: str) -> Any:
    """The object of that name. Raises ExperimentError when there is none."""
    module, _, name = reference.partition(":")
    if not module or not name:
        raise ExperimentError(f"{reference!r} names no object; write 'your_module:object'")
    try:
        loaded = import_module(module)
    except ImportError as error:
        raise ExperimentError(
            f"{reference!r} cannot be imported: {error}; the module must stand beside the "
            "experiment or be installed"
        ) from error
    except (Exception, SystemExit) as error:
        told = f"{type(error).__name__}: {error}"
        raise ExperimentError(f"{reference!r}: {module} cannot be imported: {told}") from error
    if not hasattr(loaded, name):
        public = [known for known in vars(loaded) if not known.startswith("_")]
        hint = did_you_mean(name, public) or "write 'your_module:object'"
        raise ExperimentError(f"{module} has no {name!r}; {hint.strip()}")
    return getattr(loaded, name)


def cause(error: BaseException) -> str:
    """What went wrong; in a user's own object with its type, file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not Path(frame.filename).is_relative_to(_PACKAGE)]
    if not outside:
        return str(error)
    return f"{type(error).__name__} in {outside[-1].filename}, line {outside[-1].lineno}: {error}"


def call(reference: str, arguments: Mapping[str, Any]) -> Any:
    """What a function or class gives for the arguments; of anything else, the object itself.

    Raises ExperimentError when it does not take the arguments, or takes others.
    """
    found = load(reference)
    if inspect.isroutine(found) or inspect.isclass(found):
        _check(reference, inspect.signature(found), arguments)
        return found(**arguments)
    if arguments:
        given = ", ".join(map(repr, arguments))
        raise ExperimentError(f"{reference!r} is a finished object: it takes nothing, got {given}")
    return found


def _check(reference: str, signature: inspect.Signature, arguments: Mapping[str, Any]) -> None:
    taken = signature.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    for name in arguments:
        if name not in taken and not takes_any:
            raise ExperimentError(
                f"{reference!r} takes no {name!r}; {did_you_mean(name, taken)}it takes "
                f"{', '.join(taken) or 'nothing'}"
            )
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ExperimentError(f"{reference!r}: {error}") from None


def check_fields(
    label: str, made: type, values: Mapping[str, object], hidden: Collection[str] = ()
) -> None:
    """ExperimentError for a value that is no field of the dataclass, or of another type.

    The fields that are ``hidden`` are not the user's to give.
    """
    types = get_type_hints(made)
    known = {
        f.name: types[f.name] for f in dataclasses.fields(made) if f.init and f.name not in hidden
    }
    for name, value in values.items():
        if name not in known:
            raise ExperimentError(
                f"{label} has no {name!r}; {did_you_mean(name, known)}it has {', '.join(known)}"
            )
        if not is_a(value, known[name]):
            kind = known[name]
            wanted = kind.__name__ if isinstance(kind, type) else str(kind)
            raise ExperimentError(
                f"{label}: {name} = {value!r} is of type {type(value).__name__}; the field is of "
                f"type {wanted}"
            )


def is_a(value: object, kind: Any) -> bool:
    """Whether a value is of an annotated type; what is more than a class checks itself."""
    if get_origin(kind) in (Union, UnionType):
        return any(is_a(value, part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and _are(value, get_args(kind))
    if not isinstance(kind, type):
        return True
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _are(values: tuple[object, ...], kinds: tuple[Any, ...]) -> bool:
    if kinds[1:] == (...,):
        kinds = kinds[:1] * len(values)
    return len(values) == len(kinds) and all(map(is_a, values, kinds))

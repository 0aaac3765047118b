"""Objects of the user's own, named as ``module:object``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from fedtiny.errors import ExperimentError, did_you_mean


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
    if not hasattr(loaded, name):
        public = [known for known in vars(loaded) if not known.startswith("_")]
        hint = did_you_mean(name, public) or "write 'your_module:object'"
        raise ExperimentError(f"{module} has no {name!r}; {hint.strip()}")
    return getattr(loaded, name)


def call(reference: str, arguments: Mapping[str, Any]) -> Any:
    """What the object gives for the arguments; the object itself when it cannot be called.

    Raises ExperimentError when it does not take the arguments, or takes others.
    """
    found = load(reference)
    if callable(found):
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

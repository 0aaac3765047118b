"""What a device trains: some parameters of a model, or all of them."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from fedtiny.errors import CompileError
from fedtiny.values import FROZEN, Layout, Parameter


@dataclass(frozen=True, slots=True)
class Part:
    """Which entries of one parameter train: all, or the channels ``indices`` along an axis.

    ``axis`` is "all", "in" or "out".
    """

    axis: str = "all"
    indices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """What a device trains.

    ``rule`` is one of ``all``, ``last:K`` (the last K layers), ``biases`` or
    ``named:PATTERN,PATTERN`` (shell patterns over parameter names). ``parts`` narrows single
    parameters to channels.
    """

    rule: str = "all"
    parts: tuple[tuple[str, Part], ...] = ()

    @classmethod
    def all(cls) -> UpdatePlan:
        """Every parameter that is not frozen."""
        return cls()

    @classmethod
    def last_layers(cls, count: int) -> UpdatePlan:
        """The parameters of the last ``count`` layers that have any to train."""
        return cls(f"last:{count}")

    @classmethod
    def biases(cls) -> UpdatePlan:
        """Every parameter named ``bias``."""
        return cls("biases")

    @classmethod
    def named(cls, *patterns: str) -> UpdatePlan:
        """The parameters whose name matches one of the shell patterns."""
        return cls("named:" + ",".join(patterns))

    def resolve(self, layout: Layout) -> dict[str, Part]:
        """The trained parameters of this layout, in its order.

        Raises CompileError when the plan selects nothing or names what is not there.
        """
        parts = dict(self.parts)
        chosen = {
            p.name: parts.pop(p.name, Part())
            for p in layout.parameters
            if self._selects(p, layout) and p.group != FROZEN
        }
        if parts:
            raise CompileError(f"the plan has parts of {sorted(parts)}, which it does not train")
        if not chosen:
            raise CompileError(
                f"the plan {self.rule!r} trains none of the parameters "
                f"{[p.name for p in layout.parameters]}"
            )
        return chosen

    def _selects(self, parameter: Parameter, layout: Layout) -> bool:
        kind, _, argument = self.rule.partition(":")
        if kind == "all":
            return True
        if kind == "biases":
            return parameter.name.rpartition(".")[2] == "bias"
        if kind == "named" and argument:
            return any(fnmatch.fnmatchcase(parameter.name, p) for p in argument.split(","))
        if kind == "last" and argument.isdigit() and int(argument) > 0:
            layers = list(dict.fromkeys(p.layer for p in layout.parameters if p.group != FROZEN))
            return parameter.layer in layers[-int(argument) :]
        raise CompileError(
            f"unknown plan {self.rule!r}; there are 'all', 'last:2', 'biases' and "
            "'named:fc.*,head.bias'"
        )

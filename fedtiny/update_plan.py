"""What a device trains: parameters of a model, whole or some of their channels.

A plan is written as rules joined by ``+``. A device trains what any of them selects:

    all                     every parameter
    last:K                  the parameters of the last K layers
    biases                  every parameter named bias
    biases:K                the last K of them
    named:PATTERN,PATTERN   shell patterns over the names of parameters

A pattern may be narrowed to channels in braces: ``conv2.weight{in=1/4}`` trains what the first
quarter of its inputs (at least one) is multiplied by, ``{out=0-23}`` the weights of 24 outputs,
``{in=3+5+9-12}`` those of six inputs. A name with one of ``+ , { }`` in it is written with ``?``.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from fedtiny.errors import CompileError
from fedtiny.layout import FROZEN, Layout, Parameter, Ranges, merge_ranges

AUTO = "auto"
"""What an experiment says in place of a plan that is to be found."""
IN, OUT = "in", "out"
"""The axes of channels: the last but one, which counts inputs, and the last."""
_BETWEEN_RULES = re.compile(r"\+(?![^{]*\})")
_COUNTED = re.compile(r"(last|biases):([1-9][0-9]{0,5})")
_PATTERN = re.compile(r"([^{}+,]+)(?:\{(in|out)=([^{}]+)\})?")
_SHARE = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


@dataclass(frozen=True, slots=True)
class Part:
    """Which entries of one parameter train: all, or the channels ``indices`` along an axis.

    ``axis`` is "all", "in" or "out".
    """

    axis: str = "all"
    indices: tuple[int, ...] = ()


WHOLE = Part()


@dataclass(frozen=True, slots=True)
class Channels:
    """Some channels of an axis: the first ``share`` of them, or those of the ``ranges``."""

    axis: str
    share: Fraction = Fraction(0)
    ranges: Ranges = ()

    @classmethod
    def parse(cls, axis: str, text: str) -> Channels:
        """From ``1/4``, ``0-23`` or ``3+5+9-12``."""
        if share := _SHARE.fullmatch(text):
            part, whole = map(int, share.groups())
            if not 0 < part <= whole:
                raise CompileError(f"{text} is no share of channels; write one such as 1/4")
            return cls(axis, Fraction(part, whole))
        return cls(axis, ranges=merge_ranges(map(_range, text.split("+"))))

    def __str__(self) -> str:
        """As a plan holds it."""
        share, spans = self.share, ((start, stop - 1) for start, stop in self.ranges)
        listed = (f"{first}-{last}" if first < last else str(first) for first, last in spans)
        text = f"{share.numerator}/{share.denominator}" if share else "+".join(listed)
        return f"{self.axis}={text}"

    def part(self, parameter: Parameter) -> Part:
        """These channels of a parameter; CompileError if it has no such axis or channel."""
        name, shape = parameter.name, parameter.shape
        if self.axis == IN and len(shape) < 2:
            raise CompileError(
                f"{name} has the shape {shape} and no inputs: write {name}{{out=...}}, or leave it "
                f"out of the pattern with {{{self}}}"
            )
        width = shape[-2 if self.axis == IN else -1]
        if self.ranges and self.ranges[-1][1] > width:
            raise CompileError(
                f"the plan trains channel {self.ranges[-1][1] - 1} of {name} by {{{self}}}; along "
                f"{self.axis!r} it has the channels 0 to {width - 1}"
            )
        ranges = self.ranges or ((0, max(1, int(width * self.share))),)
        indices = tuple(i for start, stop in ranges for i in range(start, stop))
        return Part(self.axis, indices) if len(indices) < width else WHOLE


def _range(text: str) -> tuple[int, int]:
    found = _RANGE.fullmatch(text)
    if not found or int(found[2] or found[1]) < int(found[1]):
        raise CompileError(
            f"{text!r} is no range of channels; write '1/4', or a list such as '3+5+9-12'"
        )
    return int(found[1]), int(found[2] or found[1]) + 1


@dataclass(frozen=True, slots=True)
class Pattern:
    """A shell pattern over names, and the channels to which it narrows what it matches."""

    glob: str
    channels: Channels | None = None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """From ``conv2.*`` or ``conv2.weight{in=1/4}``."""
        found = _PATTERN.fullmatch(text)
        if not found:
            raise CompileError(
                f"{text!r} is no pattern of a plan; write one such as 'fc.*', or "
                "'conv2.weight{in=1/4}' for some of its channels"
            )
        glob, axis, channels = found.groups()
        return cls(glob, Channels.parse(axis, channels) if axis else None)

    def __str__(self) -> str:
        """As a plan holds it."""
        return f"{self.glob}{{{self.channels}}}" if self.channels else self.glob

    def parts(self, parameters: list[Parameter]) -> Iterator[tuple[str, Part]]:
        """What it selects."""
        for p in parameters:
            if fnmatch.fnmatchcase(p.name, self.glob):
                yield p.name, self.channels.part(p) if self.channels else WHOLE


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a plan; ``count`` is 0 without one."""

    kind: str
    count: int = 0
    patterns: tuple[Pattern, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Rule:
        """From its text; raises CompileError."""
        if counted := _COUNTED.fullmatch(text):
            return cls(counted[1], int(counted[2]))
        if text in ("all", "biases"):
            return cls(text)
        kind, _, patterns = text.partition(":")
        if kind == "named" and patterns:
            return cls(kind, patterns=tuple(map(Pattern.parse, patterns.split(","))))
        raise CompileError(
            f"unknown plan {text!r}; there are 'all', 'last:2', 'biases', 'biases:4', "
            "'named:fc.*,conv2.weight{in=1/4}', and several joined by '+'"
        )

    def __str__(self) -> str:
        """As a plan holds it."""
        argument = ",".join(map(str, self.patterns)) or (str(self.count) if self.count else "")
        return f"{self.kind}:{argument}" if argument else self.kind

    def parts(self, parameters: list[Parameter]) -> Iterator[tuple[str, Part]]:
        """What it selects; CompileError for a rule or a pattern that selects nothing."""
        for pattern in self.patterns or (None,):
            found = list(pattern.parts(parameters) if pattern else self._whole(parameters))
            if not found:
                raise CompileError(
                    f"the plan {f'named:{pattern}' if pattern else str(self)!r} trains none of the "
                    f"parameters {[p.name for p in parameters]}"
                )
            yield from found

    def _whole(self, parameters: list[Parameter]) -> Iterator[tuple[str, Part]]:
        """Whole parameters, by their kind and place."""
        if self.kind == "biases":
            parameters = [p for p in parameters if p.name.rpartition(".")[2] == "bias"]
        layers = list(dict.fromkeys(p.layer for p in parameters))[-self.count :]
        return ((p.name, WHOLE) for p in parameters if p.layer in layers)


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """What a device trains: what any of its rules selects. ``str`` gives the text that ``parse``
    takes."""

    rules: tuple[Rule, ...] = (Rule("all"),)

    @classmethod
    def parse(cls, text: str) -> UpdatePlan:
        """From a text such as ``biases:22+last:1+named:b5.expand.weight{in=1/4}``.

        Raises CompileError for what is no plan.
        """
        rules = map(Rule.parse, _BETWEEN_RULES.split(text))
        return cls(tuple(dict.fromkeys(rules)))

    @classmethod
    def all(cls) -> UpdatePlan:
        """Every parameter that is not frozen."""
        return cls()

    @classmethod
    def last_layers(cls, count: int) -> UpdatePlan:
        """The parameters of the last ``count`` layers that have any to train."""
        return cls.parse(f"last:{count}")

    @classmethod
    def biases(cls) -> UpdatePlan:
        """Every parameter named ``bias``."""
        return cls.parse("biases")

    @classmethod
    def named(cls, *patterns: str) -> UpdatePlan:
        """The parameters whose name matches one of the shell patterns, or their channels."""
        return cls.parse("named:" + ",".join(patterns))

    def __add__(self, other: UpdatePlan) -> UpdatePlan:
        """What either trains."""
        return UpdatePlan(tuple(dict.fromkeys(self.rules + other.rules)))

    def __str__(self) -> str:
        """The plan as a text."""
        return "+".join(map(str, self.rules))

    def resolve(self, layout: Layout) -> dict[str, Part]:
        """The trained parameters of this layout, in its order. What several rules select is trained
        whole if one of them says so.

        Raises CompileError when a rule selects nothing, or channels that are not there, or when
        rules narrow one parameter along both axes.
        """
        parameters = [p for p in layout.parameters if p.group != FROZEN]
        found: dict[str, list[Part]] = {}
        for rule in self.rules:
            for name, part in rule.parts(parameters):
                found.setdefault(name, []).append(part)
        return {p.name: _union(p, found[p.name]) for p in parameters if p.name in found}


def _union(parameter: Parameter, parts: list[Part]) -> Part:
    """What one of the parts trains."""
    axes = {part.axis for part in parts}
    if WHOLE in parts:
        return WHOLE
    if len(axes) > 1:
        raise CompileError(
            f"the plan narrows {parameter.name} along 'in' and along 'out': choose one of them, or "
            "train it whole"
        )
    indices = tuple(sorted({index for part in parts for index in part.indices}))
    width = parameter.shape[-2 if axes == {IN} else -1]
    return Part(axes.pop(), indices) if len(indices) < width else WHOLE

"""What an update may say: checked against what its device was asked, before it can count."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.experiment.asking import measured, returned
from fedtiny.layout import Layout, Ranges, length
from fedtiny.tensors import raw
from fedtiny.transforms.quantisers import FORMS
from fedtiny.transforms.sparsifiers import PLACE_BYTES, count_of, shared_mask
from fedtiny.transforms.table import QUANTISES, SPARSIFIES, find
from fedtiny.values import TRAIN, VOTES, Instruction, Update
from fedtiny.wire.codec import mask_name

if TYPE_CHECKING:
    from fedtiny.engine.program import Program
    from fedtiny.masks import Mask
    from fedtiny.tensors import Int64

_MOST_COUNT, _MOST_SUM = 2.0**40, 1e30
_COUNTS = ("count", "steps", "correct")


@dataclass(frozen=True, slots=True)
class Expected:
    """What a Program sends back when it is asked that: these coordinates, or some of them, under
    this mask, and these measures. ``seed``: that of the run, for the masks that all draw alike."""

    asked: Instruction
    layout: Layout
    ranges: Ranges
    measures: tuple[str, ...]
    mask: Mask | None
    seed: int
    batch: int

    @classmethod
    def of(
        cls,
        asked: Instruction,
        programs: Iterable[Program],
        layout: Layout,
        mask: Callable[[bytes], Mask],
        seed: int,
    ) -> tuple[Expected, ...]:
        """What any of the Programs may send, each once; ``mask`` reads the blob of one."""
        each, trains = [], asked.kind == TRAIN
        for program in programs:
            own = asked.of(program.density)
            ranges, read = returned(program, own), mask(own.mask) if own.mask and trains else None
            names = measured(program, own)
            each.append(cls(own, layout, ranges, names, read, seed, program.batch))
        return tuple(dict.fromkeys(each))

    def flaw(self, update: Update) -> str:
        """Why the Program does not send this; empty if it does."""
        if self.asked.grow and self.asked.sends_gradient:
            told = self._flaw_of_places(update)
        else:
            told = self._flaw_of_ranges(update) or self._flaw_of_count(update)
            told = told or self._flaw_of_mask(update)
        told = told or self._flaw_of_form(update)
        told = told or flaw_of_measures(update.measures, self.measures)
        return told or self._flaw_of_steps(update)

    def _flaw_of_steps(self, update: Update) -> str:
        """A strategy may scale the model by them: no more than the phases have, where a pass has as
        many as the samples of the update fill."""
        if "steps" not in self.measures:
            return ""
        phases, found = self.asked.phases, update.measures["steps"]
        most = sum(phase.steps_on(update.samples, self.batch) for phase in phases)
        return "" if found <= most else f"measures: steps is {found:g}; at most {most:,} are due"

    def _flaw_of_ranges(self, update: Update) -> str:
        # A device may train a part of the model, but a part of a statistic or a sum is none.
        trains = self.asked.kind == TRAIN
        if update.ranges == self.ranges or (trains and _within(update.ranges, self.ranges)):
            return ""
        told = _told(self.ranges)
        return f"ranges: it has values for {_told(update.ranges)}, those asked for are {told}"

    def _flaw_of_mask(self, update: Update) -> str:
        own, given = update.mask, self._mask_of(update)
        if own == given:
            return ""
        if own is None or given is None or not self.asked.grow:
            live = "all coordinates" if own is None else f"{own.count:,} coordinates of a mask"
            return f"mask: it has values for {live}, not for the mask that was given"
        # What grows takes the place of as many that die, parameter by parameter.
        counts = zip(self.layout.parameters, own.counts(self.layout), given.counts(self.layout),
                     strict=True)  # fmt: skip
        named = dict(self.asked.grow)
        for parameter, found, due in counts:
            if found != due and (parameter.name not in named or found > due):
                return f"mask: {parameter.name} has {found:,} live values; {due:,} are due"
        return ""

    def _mask_of(self, update: Update) -> Mask | None:
        """The mask that was given, or that all draw alike in the round of its lease."""
        drawn = shared_masks(self.asked, self.seed, [update.round], self.layout.size)
        return next(iter(drawn.values()), self.mask)

    def _flaw_of_count(self, update: Update) -> str:
        """Of what it trained, everything is asked for, or the largest values."""
        ranges, mask = update.coverage
        trained = length(ranges) if mask is None else mask.length(ranges)
        step = find(self.asked.transforms, SPARSIFIES)
        due = count_of(step.figure, trained) if step and step.name == "topk" else trained
        if update.places is None:
            return "" if due == trained else f"places: it has none; {due:,} are asked for"
        found = len(update.places) // PLACE_BYTES
        if due == trained:
            return "places: it has values of some places; those of all coordinates are asked for"
        return "" if found == due else f"places: it has {found:,}; {due:,} are asked for"

    def _flaw_of_form(self, update: Update) -> str:
        if not update.nbytes:  # of a mask that all draw it may have trained nothing
            return ""
        step, small = find(self.asked.transforms, QUANTISES), update.quantised
        due, found = FORMS[step.name] if step else "float32", small.form if small else "float32"
        return "" if found == due else f"values: they are {found}; {due} is asked for"

    def _flaw_of_places(self, update: Update) -> str:
        if update.places is None:
            return "places: it has none; the largest gradients of dead coordinates are asked for"
        places = np.frombuffer(update.places, np.uint32).astype(np.int64)
        if self.asked.returns == VOTES and raw(update.values) != _ones(places.size):
            return "places: it has values; places alone are asked for"
        if self.mask is None and places.size:
            return f"places: it has {places.size:,}, and no mask: nothing of it is dead"
        if self.mask is not None and self.mask.bools[places].any():
            alive = int(places[self.mask.bools[places]][0])
            return f"places: {alive:,} is live; dead ones are asked for"
        return self._flaw_of_counts(places)

    def _flaw_of_counts(self, places: Int64) -> str:
        left = places.size
        for name, most in self.asked.grow:
            start = self.layout[name].offset
            first, last = np.searchsorted(places, [start, start + self.layout[name].size])
            if last - first > most:
                return f"places: {name} has {last - first:,}; at most {most:,} are asked for"
            left -= int(last - first)
        return f"places: {left:,} are of parameters that are not to grow" if left else ""


def shared_masks(
    asked: Instruction, seed: int, rounds: Iterable[int], size: int
) -> dict[bytes, Mask]:
    """The masks that all devices draw alike in these rounds, by their `mask_name`."""
    step = find(asked.transforms, SPARSIFIES)
    if step is None or step.name != "randomk":
        return {}
    masks = (shared_mask(seed, round, size, step.figure) for round in rounds)
    return {mask_name(mask.blob): mask for mask in masks}


def flaw_of(update: Update, expected: Sequence[Expected]) -> str:
    """Why none of the Programs sends this; empty if one does."""
    flaws = [each.flaw(update) for each in expected]
    return flaws[0] if all(flaws) else ""


def _ones(count: int) -> bytes:
    return np.ones(count, np.float32).tobytes()


def flaw_of_measures(measures: Mapping[str, float], asked: Collection[str]) -> str:
    """Why these are not the counts and sums that were asked for; empty if they are."""
    if measures.keys() != set(asked):
        unlike = sorted(measures.keys() ^ set(asked))
        return f"measures: {', '.join(unlike[:5])} are missing, or were not asked for"
    for name, value in measures.items():
        is_count = any(part.startswith(_COUNTS) for part in name.split("."))
        low, high = (0.0, _MOST_COUNT) if is_count else (-_MOST_SUM, _MOST_SUM)
        if not low <= value <= high:
            return f"measures: {name} is {value:g}; it must be in [{low:g}, {high:g}]"
    return ""


def _within(ranges: Ranges, asked: Ranges) -> bool:
    """Whether each of these is part of one that was asked for; all of them ascend."""
    left = iter(asked)
    begin, end = next(left, (0, 0))
    for start, stop in ranges:
        while end < stop:
            begin, end = next(left, (stop, stop))
        if start < begin:
            return False
    return True


def _told(ranges: Ranges) -> str:
    shown = ", ".join(f"{start:,}-{stop:,}" for start, stop in ranges[:4])
    return f"{shown}, ..." if len(ranges) > 4 else shown or "none"

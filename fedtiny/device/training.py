"""Visits that train: the shared model, what grows in it, and what the device keeps of it.

Needs no NumPy.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from fedtiny.device.growing import carried, exchanged, live_values
from fedtiny.device.vectors import combined, copied, restricted, taken
from fedtiny.device.visit import Key, Outcome, Visit, added, check_finite
from fedtiny.errors import DataError
from fedtiny.tensors import float_view, floats
from fedtiny.transforms.chain import transformed
from fedtiny.values import (
    CONTROL,
    GRADIENT,
    LOCAL_VALUES,
    OWN_MODEL,
    RESIDUAL,
    VOTES,
    Phase,
)

if TYPE_CHECKING:
    from fedtiny.layout import Ranges
    from fedtiny.tensors import Buffer
    from fedtiny.values import Instruction, Kept


def sent(
    asked: Instruction, done: Outcome, base: Buffer | None, size: int, key: Key, residual: bytes
) -> Outcome:
    """What the transforms of the instruction make of a visit, and what they leave out.

    ``base``: the values from which those that it sends have started; None: it sends a gradient.
    """
    made = transformed(asked, done.values, base, done.ranges, done.mask, size, key, residual)
    left = {RESIDUAL: made.residual} if made.residual else {}
    return replace(
        done, values=made.values, places=made.places, mask=made.mask, quantised=made.quantised,
        kept={**done.kept, **left},
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Training(Visit):
    """A visit that trains."""

    def train(self) -> Outcome:
        """Carry out the phases; what they come to, and what stays here."""
        asked = self.instruction
        self.load()
        if asked.grow and asked.sends_gradient:
            return self._grow()
        int8 = self.program.int8_parameters
        start = self.executor.store() if asked.control or asked.own or int8 else b""
        *before, last = asked.phases
        loss_sum = added(chain(self.losses(before), self._last_losses(last)))
        done = self._shared(loss_sum, start)
        done = self._transformed(done) if asked.transforms else done
        return replace(done, kept={**done.kept, **self._own(start)})

    def _shared(self, loss_sum: float, start: Buffer) -> Outcome:
        """What the training of the shared model has come to."""
        asked, trained = self.instruction, self._moved(start)
        ranges, (steps, samples) = self.program.sent_ranges(asked), self.used(asked.phases)
        if asked.returns == GRADIENT:
            values = self._gradient(ranges)
        else:
            values = taken(trained, self.stored_ranges(ranges))
        return Outcome(
            values, ranges, samples,
            {"loss_sum": loss_sum, "steps": steps},
            {**self._local(trained), **self._control(start, ranges, steps)}, self.learner.mask,
        )  # fmt: skip

    def _moved(self, start: Buffer) -> memoryview[float]:
        """The parameters after training. What is int8 stands on a grid beside the model that was
        loaded: it is that model, as far as the int8 have moved from ``start``."""
        trained, int8 = self.store(), self.program.int8_parameters
        if not int8:
            return trained
        ways = combined((1.0, trained), (-1.0, start))
        moved, made = combined((1.0, self.with_local()), (1.0, ways)), copied(trained)
        for p in int8:
            made[p.offset : p.offset + p.size] = moved[p.offset : p.offset + p.size]
        return made

    def _last_losses(self, phase: Phase) -> Iterator[float]:
        if self.instruction.returns == GRADIENT:  # a step that moves nothing
            still = replace(phase, lr=0.0, steps=1, sgd=replace(phase.sgd, momentum=0.0))
            yield from self.losses([still], moves=False)
            return
        if self.instruction.grow:
            self._readjust(phase)
        yield from self.losses([phase])

    def _gradient(self, ranges: Ranges) -> bytes:
        full = float_view(self.executor.store_gradient())
        check_finite(full, "gradients")
        mask = self.learner.mask
        return live_values(full, mask, ranges) if mask else taken(full, ranges)

    def _transformed(self, done: Outcome) -> Outcome:
        base = None if self.instruction.sends_gradient else self._sent_base(done.ranges)
        size, residual = self.program.layout.size, self.kept.get(RESIDUAL, b"")
        return sent(self.instruction, done, base, size, self.key, residual)

    def _sent_base(self, ranges: Ranges) -> bytes:
        """Where the coordinates that are sent have started."""
        mask = self.learner.mask
        if mask and len(self.base) == mask.size:
            return live_values(self.base, mask, ranges)
        return taken(self.base, self.stored_ranges(ranges))

    # -- what stays on the device --

    def _local(self, stored: memoryview[float]) -> Kept:
        """The values of the local parameters."""
        local = self.program.local_ranges
        return {LOCAL_VALUES: taken(stored, self.stored_ranges(local))} if local else {}

    def _control(self, start: Buffer, ranges: Ranges, steps: int) -> Kept:
        """The control variate of what is sent: ``c_k - c + (x - y) / (K lr)``."""
        if not self.instruction.control:
            return {}
        pace = 1.0 / (steps * self.instruction.phases[-1].lr)
        terms = (-1.0, self.correction()), (pace, start), (-pace, self.executor.store())
        return {CONTROL: bytes(restricted(combined(*terms), ranges))}

    def _own(self, start: Buffer) -> Kept:
        """The device's own model after its phases."""
        if not self.instruction.own:
            return {}
        self.learner.load(self.kept.get(OWN_MODEL, start))
        added(self._own_losses(start))
        self.store()
        return {OWN_MODEL: bytes(self.executor.store())}

    def _own_losses(self, start: Buffer) -> Iterator[float]:
        """A proximal term ``mu (w - x)`` is decay by mu, and a correction by ``-mu x``: the memory
        for the former is bound to where the training starts, which here is not x."""
        for phase in self.instruction.own:
            prox, decay = phase.sgd.prox, phase.sgd.weight_decay
            self.executor.load_correction(combined((-prox, start)))
            sgd = replace(phase.sgd, prox=0.0, weight_decay=decay + prox)
            yield from self.losses([replace(phase, sgd=sgd, corrected=True)])

    # -- growing --

    def _grow(self) -> Outcome:
        """The dead coordinates that a batch would move most, after the phases before the last."""
        *before, last = self.instruction.phases
        loss_sum = added(self.losses(before))
        trained = self.store()
        found = self._found(last)
        votes = self.instruction.returns == VOTES
        values = array("f", [1.0 if votes else g for _, g in found])
        return Outcome(
            values.tobytes(), ((0, self.program.layout.size),),
            self.used(self.instruction.phases)[1],
            {"loss_sum": loss_sum, "steps": self.used(before)[0]},
            self._local(trained), places=array("I", [at for at, _ in found]).tobytes(),
        )  # fmt: skip

    def _found(self, phase: Phase) -> list[tuple[int, float]]:
        """Coordinates and gradients; one that a batch does not move is of no use to anybody."""
        samples = self.samples_of(phase.part)
        x, y = next(self.learner.training_batches(replace(phase, steps=1), samples, self.key))
        found = self.executor.grow(x, y, self._most())
        check_finite(floats([g for _, g in found]), "gradients")
        return [(at, g) for at, g in found if g]

    def _most(self) -> list[int]:
        most, prunable = dict(self.instruction.grow), self.program.prunable
        unknown = most.keys() - set(prunable)
        if unknown:
            raise DataError(
                f"the instruction grows {sorted(unknown)}; this Program prunes {list(prunable)}"
            )
        return [most.get(name, 0) for name in prunable]

    def _readjust(self, phase: Phase) -> None:
        """As many of the smallest live weights die as dead ones grow, layer by layer."""
        mask = self.learner.mask
        assert mask is not None
        values, grown = self.store(), [at for at, _ in self._found(phase)]
        program = self.program
        moved = exchanged(mask, program.layout, program.prunable, values, grown)
        self.learner.load_mask(moved)
        self.executor.load_live(carried(values, mask, moved))

"""A delta, the transforms that were asked for, and what is sent of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedtiny.transforms import quantisers, sparsifiers
from fedtiny.transforms.arithmetic import Place, arithmetic
from fedtiny.transforms.feedback import Left
from fedtiny.transforms.shaping import shaped
from fedtiny.transforms.sparsifiers import Cover
from fedtiny.transforms.table import FEEDS_BACK, QUANTISES, SPARSIFIES, check, find

if TYPE_CHECKING:
    from fedtiny.layout import Ranges
    from fedtiny.masks import Mask
    from fedtiny.tensors import Buffer
    from fedtiny.values import Instruction, Quantised


@dataclass(frozen=True)
class Sent:
    """What is left of a delta; the fields are those of an Update.

    ``residual`` is what the device keeps for its next visit: float32 of the whole vector, empty
    without feedback.
    """

    values: bytes
    places: bytes | None = None
    mask: Mask | None = None
    quantised: Quantised | None = None
    residual: bytes = b""


def transformed(
    asked: Instruction,
    values: Buffer,
    base: Buffer | None,
    ranges: Ranges,
    mask: Mask | None,
    size: int,
    key: Place,
    residual: bytes = b"",
) -> Sent:
    """What a device sends when it was asked for transforms.

    Raises StrategyError for a chain that no device can carry out, whoever has asked for it.

    Args:
        asked: What asks for them.
        values: What it trained: float32 of the coordinates in ``ranges`` that are live in ``mask``
            if there is one; or the gradient of these.
        base: The values that these had before the visit; None if what is sent is a gradient.
        ranges: The coordinates that it trained.
        mask: That of the instruction.
        size: Coordinates of the whole vector.
        key: The visit's place in the run: ``run``, ``round`` and ``device``.
        residual: What the last visit kept; empty at first.
    """
    numbers, steps, cover = arithmetic(), asked.transforms, Cover(ranges, mask, size)
    check(steps)
    delta = numbers.vector(values) if base is None else numbers.difference(values, base)
    delta = shaped(steps, delta, key)
    left = None
    if find(steps, FEEDS_BACK):
        left = Left.of(residual, cover)
        delta = numbers.added(delta, left.values)
    chosen = sparsifiers.chosen(find(steps, SPARSIFIES), delta, cover, key)
    sent = delta if chosen.at is None else numbers.taken(delta, chosen.at)
    quantised = quantisers.quantised(find(steps, QUANTISES), sent, key)
    if quantised:
        sent = numbers.vector(quantisers.values_of(quantised, len(sent)))
    kept = left.after(delta, sent, chosen.at) if left else b""
    return Sent(bytes(sent), chosen.places, chosen.mask, quantised, kept)

"""Error feedback: what was left out of a delta is added to the next one.

F. Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014: with a compressor C,
``sent = C(delta + e)`` and then ``e = delta + e - sent``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedtiny.errors import DataError
from fedtiny.tensors import FLOAT_BYTES, raw
from fedtiny.transforms.arithmetic import arithmetic

if TYPE_CHECKING:
    from fedtiny.tensors import Buffer
    from fedtiny.transforms.arithmetic import Positions, Vector
    from fedtiny.transforms.sparsifiers import Cover


@dataclass(frozen=True, eq=False)
class Left:
    """What a device has left out so far: float32 of the ``whole`` vector, for the coordinates that
    it trains may be others in another round."""

    whole: Vector
    cover: Cover

    @classmethod
    def of(cls, residual: Buffer, cover: Cover) -> Left:
        """What an earlier visit kept; nothing at first. Raises DataError if it is of no use."""
        due = FLOAT_BYTES * cover.size
        found = raw(residual) or bytes(due)
        if len(found) != due:
            raise DataError(
                f"{len(found):,} B are kept of what feedback left out, a model of {cover.size:,} "
                f"parameters needs {due:,} B; let the device forget them"
            )
        return cls(arithmetic().vector(found), cover)

    @property
    def values(self) -> Vector:
        """Those of the coordinates that are trained now."""
        return arithmetic().taken(self.whole, self.cover.coordinates)

    def after(self, delta: Vector, sent: Vector, at: Positions | None) -> bytes:
        """What is left when ``sent`` is sent of the delta: of all its values, or those ``at``."""
        numbers = arithmetic()
        if at is None:
            rest = numbers.difference(delta, sent)
        else:
            rest = numbers.replaced(delta, at, numbers.difference(numbers.taken(delta, at), sent))
        return bytes(numbers.replaced(self.whole, self.cover.coordinates, rest))

"""Models and updates of int8 devices: a byte for each weight.

The bytes of a model are the steps of the channels, then the values of all other parameters, float32
each, then the weights, filled up with zeros to whole words; each in the order of the layout. Both
sides know all lengths from the Program. A device that loads what it reads holds the same as one
that loads the model. Steps stay while a device trains, so that its update needs none.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from fedtiny import quantised
from fedtiny.errors import WireError
from fedtiny.layout import LOCAL
from fedtiny.tensors import FLOAT_BYTES, all_finite, float_view, has_numpy, raw
from fedtiny.values import TRAIN, Quantised

if TYPE_CHECKING:
    from fedtiny.layout import Layout, Parameter, Ranges
    from fedtiny.quantised import HoldsInt8
    from fedtiny.tensors import Buffer, Float32
    from fedtiny.values import Instruction, Update

Weights = tuple[str, ...]
"""The names of the parameters that travel as int8; none if the model travels as float32."""


def weights_of(program: HoldsInt8, asked: Instruction) -> Weights:
    """Those of a Program that is asked this.

    None where transforms look at what it sends as a difference to the whole model; and what stays
    on a device goes on from the values that it was sent.
    """
    if asked.transforms:
        return ()
    return tuple(p.name for p in program.int8_parameters if p.group != LOCAL)


def int8_bytes(layout: Layout, weights: Weights) -> int:
    """Of a model in this form."""
    steps, count = _steps(layout, weights), _count(layout, weights)
    return FLOAT_BYTES * (steps + layout.size - count) + count + -count % FLOAT_BYTES


def write_int8(layout: Layout, weights: Weights, model: Float32) -> bytes:
    """A model in this form."""
    import numpy as np

    steps, q = [], []
    for p in _chosen(layout, weights):
        weight = model[p.offset : p.offset + p.size].reshape(p.shape)
        step = quantised.steps(weight)
        steps.append(step.tobytes())
        q.append(quantised.quantise_weight(weight, step).tobytes())
    rest = [
        np.ascontiguousarray(model[start:stop]).tobytes() for start, stop in _rest(layout, weights)
    ]
    words = b"".join([*steps, *rest, *q])
    return words + bytes(-len(words) % FLOAT_BYTES)


def read_int8(layout: Layout, weights: Weights, data: Buffer) -> bytes:
    """The model, float32, with its weights on the grid of int8. Raises WireError if it is none."""
    found, due = raw(data), int8_bytes(layout, weights)
    if len(found) != due:
        raise WireError("size", f"a model of {len(found):,} B as int8; {due:,} B are due")
    count, at = _count(layout, weights), FLOAT_BYTES * _steps(layout, weights)
    words_end = due - count - -count % FLOAT_BYTES
    if not all_finite(float_view(found[:words_end])):
        raise WireError(
            "not-finite", "a model as int8 with steps or values that are NaN or infinite"
        )
    made, steps_at, q_at = bytearray(layout.nbytes), 0, words_end
    for start, stop in _rest(layout, weights):
        nbytes = FLOAT_BYTES * (stop - start)
        made[FLOAT_BYTES * start : FLOAT_BYTES * stop] = found[at : at + nbytes]
        at += nbytes
    for p in _chosen(layout, weights):
        steps = found[steps_at : steps_at + FLOAT_BYTES * p.shape[-1]]
        values = _times(found[q_at : q_at + p.size], steps)
        made[FLOAT_BYTES * p.offset : FLOAT_BYTES * (p.offset + p.size)] = values
        steps_at, q_at = steps_at + len(steps), q_at + p.size
    return bytes(made)


def sent_model(program: HoldsInt8, layout: Layout, asked: Instruction, data: bytes) -> bytes:
    """The float32 of a model as a Program gets it that is asked this."""
    weights = weights_of(program, asked)
    return read_int8(layout, weights, data) if weights else data


# ---- updates ---------------------------------------------------------------------------------

GRID = "grid"


def grid_of(program: HoldsInt8, layout: Layout, asked: Instruction, data: bytes) -> bytes:
    """The step of each coordinate of the model that such a Program was sent, float32: 0 where it is
    no int8. Empty if the model went whole, or what comes back are no values of it."""
    weights = weights_of(program, asked)
    sends_values = asked.kind == TRAIN and not asked.sends_gradient
    return steps_of(layout, weights, data) if weights and sends_values else b""


def steps_of(layout: Layout, weights: Weights, data: Buffer) -> bytes:
    """The step of each coordinate of a model in this form."""
    made, at, found = bytearray(layout.nbytes), 0, raw(data)
    for p in _chosen(layout, weights):
        steps = bytes(found[at : at + FLOAT_BYTES * p.shape[-1]])
        rows = steps * (p.size // p.shape[-1])
        made[FLOAT_BYTES * p.offset : FLOAT_BYTES * (p.offset + p.size)] = rows
        at += len(steps)
    return bytes(made)


def grid_count(layout: Layout, weights: Weights, ranges: Ranges) -> int:
    """How many coordinates in these ranges are int8."""
    chosen = layout.ranges(weights)
    return sum(max(0, min(b, d) - max(a, c)) for a, b in ranges for c, d in chosen)


def on_grid(update: Update, steps: bytes) -> Update:
    """The update as it travels: its int8 as such, if it has any, and if all are whole steps."""
    values, own = float_view(raw(update.values)), _covered(steps, update.ranges)
    split = _split_arrays if has_numpy() else _split_plain
    q, rest = split(values, own)
    if not q or off_grid(q, rest, steps, update.ranges) != bytes(raw(update.values)):
        return update
    return replace(update, quantised=Quantised(GRID, 0, rest, q))


def off_grid(q: bytes, rest: bytes, steps: bytes, ranges: Ranges) -> bytes:
    """The values of an update. Raises WireError if they are not as many as are due."""
    own = _covered(steps, ranges)
    due = len(own) - own.tolist().count(0)
    for what, found, expected in (
        ("int8 weights", len(q), due), ("other values", len(rest), FLOAT_BYTES * (len(own) - due)),
    ):  # fmt: skip
        if found != expected:
            raise WireError("length", f"{found:,} B of {what}; {expected:,} B are due")
    return (_joined_arrays if has_numpy() else _joined_plain)(q, rest, own)


def _covered(steps: bytes, ranges: Ranges) -> memoryview[float]:
    """The step of each coordinate in the ranges."""
    parts = (steps[FLOAT_BYTES * start : FLOAT_BYTES * stop] for start, stop in ranges)
    return float_view(b"".join(parts))


def _split_arrays(values: memoryview[float], own: memoryview[float]) -> tuple[bytes, bytes]:
    import numpy as np

    value, step = np.asarray(values), np.asarray(own)
    ours = step > 0
    units = np.rint(value[ours] / step[ours])
    return np.clip(units, -127, 127).astype(np.int8).tobytes(), value[~ours].tobytes()


def _split_plain(values: memoryview[float], own: memoryview[float]) -> tuple[bytes, bytes]:
    pairs = [*zip(values, own, strict=True)]
    units = array("b", (max(-127, min(127, round(v / step))) for v, step in pairs if step))
    return units.tobytes(), array("f", (v for v, step in pairs if not step)).tobytes()


def _joined_arrays(q: bytes, rest: bytes, own: memoryview[float]) -> bytes:
    import numpy as np

    made = np.array(own, np.float32)
    ours = made > 0
    made[ours] *= np.frombuffer(q, np.int8)
    made[~ours] = np.frombuffer(rest, np.float32)
    return made.tobytes()


def _joined_plain(q: bytes, rest: bytes, own: memoryview[float]) -> bytes:
    units, others = iter(array("b", q)), iter(array("f", rest))
    made = array("f", (next(units) * step if step else next(others) for step in own))
    return made.tobytes()


# ---- parts of a model ------------------------------------------------------------------------


def _times(q: memoryview[int], steps: memoryview[int]) -> bytes:
    """Each weight times the step of its channel: exact, for a step has 16 significant bits."""
    if has_numpy():
        import numpy as np

        step = np.frombuffer(steps, np.float32)
        return (
            (np.frombuffer(q, np.int8).reshape(-1, step.size) * step).astype(np.float32).tobytes()
        )
    each, units = float_view(steps), q.cast("b")
    return array("f", (unit * each[at % len(each)] for at, unit in enumerate(units))).tobytes()


def _chosen(layout: Layout, weights: Weights) -> Iterator[Parameter]:
    return (p for p in layout.parameters if p.name in weights)


def _rest(layout: Layout, weights: Weights) -> tuple[tuple[int, int], ...]:
    """The coordinates of all other parameters."""
    return layout.ranges(p.name for p in layout.parameters if p.name not in weights)


def _count(layout: Layout, weights: Weights) -> int:
    return sum(p.size for p in _chosen(layout, weights))


def _steps(layout: Layout, weights: Weights) -> int:
    return sum(p.shape[-1] for p in _chosen(layout, weights))

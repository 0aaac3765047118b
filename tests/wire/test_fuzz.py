"""Whatever the bytes, a reader gives a value or a WireError with a reason, and keeps nothing."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtiny.errors import WireError
from fedtiny.layout import Layout, Parameter
from fedtiny.masks import Mask
from fedtiny.values import Update
from fedtiny.wire import codec
from fedtiny.wire.checks import parse
from fedtiny.wire.codec import Due, write_values
from fedtiny.wire.int8 import on_grid
from fedtiny.wire.pb import fleet_pb2 as pb
from fedtiny.wire.pb import tensors_pb2
from fedtiny.wire.visit import share
from tests.wire.forms import rounded, whole
from tests.wire.golden import kind, messages, vectors

ROOT = Path(__file__).resolve().parents[2]
COUNT = int(os.environ.get("FEDTINY_FUZZ", 100_000))
SIZE = 65
"""Floats of the model that all payloads are read for."""
REASONS = {
    "malformed", "size", "ranges", "length", "places", "scales", "not-finite", "count", "text",
    "number", "unknown", "mask", "varint", "grid",
}  # fmt: skip
MOST_BYTES = 4096
MODEL = np.arange(SIZE, dtype=np.float32).tobytes()
NUMBERS = (0, 1, 2**7, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
DOUBLES = (0.0, -0.0, -1.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"))


# ---- readers ---------------------------------------------------------------------------------

LAYOUT = Layout.of([Parameter("weight", (40,)), Parameter("bias", (25,))])
MASK = Mask.draw(LAYOUT, {"weight": 9}, 3)
OWN = Mask(SIZE, MASK.bits)
STEPS = np.repeat([0.5, 0.0], (40, 25)).astype(np.float32).tobytes()
DUE = Due(SIZE, MOST_BYTES, {codec.mask_name(MASK.blob): MASK}, LAYOUT, STEPS)
GOOD = write_values(whole(MODEL, SIZE), SIZE)
UPDATE = codec.write_update(
    codec.read_update(
        pb.Update(run=bytes(8), lease=1, device=1, version=1, samples=1, base=bytes(32)), b"",
        Due(1, 1),
    )[2],
    bytes(8), bytes(32),
)  # fmt: skip


def _read_submit(data: bytes) -> Any:
    request = parse(pb.SubmitRequest, data)
    share(request)
    return codec.read_update(request.update, request.chunk, DUE)


READERS: dict[str, Callable[[bytes], Any]] = {
    "Answer": lambda data: codec.read_answer(parse(pb.Answer, data)),
    "Card": lambda data: codec.read_card(parse(pb.Card, data)),
    "Receipt": lambda data: codec.read_receipt(parse(pb.Receipt, data)),
    "Update": lambda data: codec.read_update(parse(pb.Update, data), GOOD, DUE),
    "SubmitRequest": _read_submit,
    "Vector": lambda data: codec.read_vector(data, DUE),
    "delta": lambda data: codec.lay_over(MODEL, data),
    "payload": lambda data: codec.read_update(UPDATE, data, DUE),
}
"""By the message that they read. Of the others only their service looks at the fields."""


@dataclass(frozen=True)
class Seed:
    """A good message to start from."""

    reader: str
    message: str
    data: bytes


def seeds() -> list[Seed]:
    """The golden messages, and vectors of the model's size in all forms."""
    values = np.frombuffer(MODEL, np.float32)
    updates = [rounded(whole(MODEL, SIZE), form) for form in ("float32", "int8", "sign")]
    updates += [whole(values[:9], SIZE, ((1, 5), (60, 65))), on_grid(updates[0], STEPS)]
    places = np.array([3, 5, 64], "<u4").tobytes()
    grown = Update(1, 1, 0, 1, 1, bytes(12), ((0, SIZE),), places=places)
    live = values[: MASK.count].tobytes()
    updates += [grown, *(rounded(grown, form) for form in ("int8", "sign"))]
    updates += [whole(live, SIZE, (), mask) for mask in (MASK, OWN)]
    written = [write_values(update, SIZE) for update in updates]
    given = codec.mask_name(MASK.blob)
    written.append(write_values(whole(live, SIZE, (), MASK), SIZE, given))
    first = MASK.coordinates(((0, SIZE),))[:2].astype("<u4").tobytes()
    some = replace(whole(live[:8], SIZE, (), MASK), places=first)
    written.append(write_values(some, SIZE, given))
    changed = values.copy()
    changed[[3, 40]] = 7.0
    delta = codec.write_delta(MODEL, changed)
    assert delta is not None
    found = [Seed(row["message"], row["message"], bytes.fromhex(row["hex"])) for row in messages()]
    found += [Seed("Vector", "Vector", bytes.fromhex(row["hex"])) for row in vectors()]
    found += [Seed(r, "Vector", data) for r in ("Vector", "payload") for data in written]
    submit = pb.SubmitRequest(update=UPDATE, chunk=written[1], offset=0, total=len(written[1]))
    found += [Seed("delta", "Vector", delta),
              Seed("SubmitRequest", "SubmitRequest", submit.SerializeToString())]  # fmt: skip
    return [seed for seed in found if seed.reader in READERS]


# ---- mutations -------------------------------------------------------------------------------


class Dice:
    """Numbers drawn in bulk: drawing them one at a time would take longer than the readers."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._left: Iterator[int] = iter(())

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        drawn = next(self._left, None)
        if drawn is None:
            self._left = iter(self._rng.integers(0, 2**32, 4096).tolist())
            drawn = next(self._left)
        return drawn % count

    def of(self, items: Any) -> Any:
        """One of the items."""
        return items[self.below(len(items))]


def cut(dice: Dice, data: bytes) -> bytes:
    at = dice.below(len(data) + 1)
    return data[:at]


def flip(dice: Dice, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(1 + dice.below(4)):
        if changed:
            changed[dice.below(len(changed))] = dice.below(256)
    return bytes(changed)


def repeat(dice: Dice, data: bytes) -> bytes:
    start = dice.below(len(data) + 1)
    stop = start + dice.below(40)
    return data[:stop] + data[start:stop] * dice.below(4) + data[stop:]


def drop(dice: Dice, data: bytes) -> bytes:
    at = dice.below(len(data) + 1)
    return data[:at] + data[at + 1 + dice.below(8) :]


def number(dice: Dice, data: bytes) -> bytes:
    """Four or eight bytes anywhere become an extreme number."""
    at = dice.below(len(data) + 1)
    word = (
        struct.pack("<Q", dice.of(NUMBERS))
        if dice.below(2)
        else struct.pack("<d", dice.of(DOUBLES))
    )
    word = word[: 4 + 4 * dice.below(2)]
    return data[:at] + word + data[at + len(word) :]


BYTES = (cut, flip, repeat, drop, number)


def field(dice: Dice, message: Any) -> None:
    """One field, however deep, becomes absent, repeated, or an extreme of its type."""
    held = message.ListFields()
    if held and dice.below(3):
        descriptor, value = dice.of(held)
        if _is_one_message(descriptor) and dice.below(6):
            return field(dice, value)
        if descriptor.is_repeated and not _is_map(descriptor) and _is_message(descriptor):
            return field(dice, dice.of(value))
    else:
        descriptor = dice.of(message.DESCRIPTOR.fields)
    if not dice.below(3):
        message.ClearField(descriptor.name)
    else:
        _set(dice, message, descriptor)


def _is_message(descriptor: Any) -> bool:
    return bool(descriptor.type == descriptor.TYPE_MESSAGE)


def _is_map(descriptor: Any) -> bool:
    return _is_message(descriptor) and descriptor.message_type.GetOptions().map_entry


def _is_one_message(descriptor: Any) -> bool:
    return _is_message(descriptor) and not descriptor.is_repeated


def _set(dice: Dice, message: Any, descriptor: Any) -> None:
    target = getattr(message, descriptor.name)
    if _is_map(descriptor):
        target["x" * dice.of((0, 1, 128, 129))] = dice.of(DOUBLES)
    elif descriptor.is_repeated and _is_message(descriptor):
        for _ in range(dice.of((1, 2, 300))):
            target.add()
    elif descriptor.is_repeated:
        target.extend([_extreme(dice, descriptor)] * dice.of((1, 2, 300)))
    elif _is_message(descriptor):
        target.SetInParent()
    else:
        setattr(message, descriptor.name, _extreme(dice, descriptor))


def _extreme(dice: Dice, descriptor: Any) -> Any:
    if descriptor.cpp_type in (descriptor.CPPTYPE_DOUBLE, descriptor.CPPTYPE_FLOAT):
        return dice.of(DOUBLES)
    if descriptor.cpp_type == descriptor.CPPTYPE_STRING:
        length = dice.of((0, 1, 7, 8, 9, 31, 32, 33, 64, 129, 1001, 5000))
        is_text = descriptor.type == descriptor.TYPE_STRING
        return "\u00e9" * length if is_text else bytes([dice.below(256)]) * length
    if descriptor.cpp_type == descriptor.CPPTYPE_BOOL:
        return bool(dice.below(2))
    bits = 64 if descriptor.cpp_type == descriptor.CPPTYPE_UINT64 else 32
    return dice.of(NUMBERS) % 2**bits


def mutated(dice: Dice, seed: Seed) -> bytes:
    """The bytes of a message, changed in one to three places."""
    data = seed.data
    for _ in range(1 + dice.below(3)):
        if not dice.below(4):
            data = dice.of(BYTES)(dice, data)
            continue
        try:
            message = parse(kind(seed.message), data)
        except WireError:  # torn by the mutation before
            continue
        field(dice, message)
        data = message.SerializeToString()
    return data


# ---- the tests -------------------------------------------------------------------------------


def attack(dice: Dice, count: int) -> Counter[str]:
    """How the readers ended: "value", or the reason of their refusal."""
    good, ends = seeds(), Counter[str]()
    for _ in range(count):
        seed = dice.of(good)
        data = mutated(dice, seed)
        try:
            READERS[seed.reader](data)
            ends["value"] += 1
        except WireError as error:
            ends[error.reason] += 1
    return ends


@pytest.mark.timeout(60 + COUNT // 2000)
def test_mutated_messages_are_read_or_refused_with_a_reason() -> None:
    ends = attack(Dice(seed=4), COUNT)
    assert set(ends) == REASONS | {"value"}  # each reason was met, and no other
    assert ends.total() == COUNT
    assert 0.05 * COUNT < ends["value"] < 0.6 * COUNT  # neither harmless nor only torn


def test_no_message_makes_a_reader_take_much_memory() -> None:
    dice, good = Dice(seed=5), seeds()
    attack(dice, 2000)  # what is made once
    tracemalloc.start()
    try:
        for _ in range(3000):
            seed = dice.of(good)
            data = mutated(dice, seed)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with suppress(WireError):
                READERS[seed.reader](data)
            after, peak = tracemalloc.get_traced_memory()
            assert peak - before < 2**17 + 4 * len(data)
            assert after - before < 2**14
    finally:
        tracemalloc.stop()


def test_protobuf_in_plain_python_refuses_as_well() -> None:
    code = "from tests.wire.test_fuzz import Dice, attack; print(*attack(Dice(6), 4000))"
    environment = os.environ | {
        "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"value", "malformed", "size"} <= set(done.stdout.split()) <= REASONS | {"value"}


def test_the_readers_read_what_the_mutations_start_from() -> None:
    own = [seed for seed in seeds() if seed.reader not in ("Vector", "SubmitRequest", "Update")]
    for seed in own:
        READERS[seed.reader](seed.data)
    assert {seed.reader for seed in seeds()} == set(READERS)
    assert tensors_pb2.Vector.FromString(GOOD).size == SIZE

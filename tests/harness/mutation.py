"""Messages that are almost right: mutations that know the fields of protobuf."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_INTEGERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
_NUMBERS = (0.0, -1.0, 1e-300, 1e300, float("inf"), -float("inf"), float("nan"))
_LENGTHS = (0, 1, 7, 31, 33, 1000, 70_000)
_TEXTS = ("", "x", "\x00", "train", "../../etc/passwd", "é" * 200, "x" * 10_000)


def mutated(messages: Sequence[Message], draws: Random) -> bytes:
    """One of the messages with one to three things changed; sometimes its bytes are damaged."""
    message = _copy(draws.choice(messages))
    for _ in range(draws.randrange(4)):
        change(message, draws)
    data = message.SerializeToString()
    return damaged(data, draws) if draws.random() < 0.3 else data


def change(message: Message, draws: Random) -> None:
    """Change one field, somewhere in the message."""
    owner, field = draws.choice(list(_places(message)))
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _change_map(getattr(owner, field.name), draws)
    elif field.is_repeated:
        _change_list(getattr(owner, field.name), field, draws)
    elif field.message_type is not None or draws.random() < 0.1:
        owner.ClearField(field.name)
    else:
        setattr(owner, field.name, _drawn(field, draws))


def damaged(data: bytes, draws: Random) -> bytes:
    """The bytes with one flipped, cut off, put in, or repeated."""
    at, way = draws.randrange(len(data) + 1), draws.randrange(4)
    if way == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << draws.randrange(8)]) + data[at + 1 :]
    if way == 1:
        return data[:at]
    if way == 2:
        return data[:at] + draws.randbytes(draws.randrange(1, 20)) + data[at:]
    return data + data[at:]


def _copy(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _places(message: Message) -> Iterator[tuple[Any, FieldDescriptor]]:
    """Every field of the message and of those inside it."""
    for field in message.DESCRIPTOR.fields:
        yield message, field
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        inside = getattr(message, field.name)
        if field.is_repeated:
            for each in inside:
                yield from _places(each)
        elif message.HasField(field.name):
            yield from _places(inside)


def _change_map(entries: Any, draws: Random) -> None:
    if entries and draws.random() < 0.5:
        del entries[next(iter(entries))]
    for number in range(5000 if draws.random() < 0.02 else 1):
        entries[f"{draws.choice(_TEXTS)}{number}"] = draws.choice(_NUMBERS)


def _change_list(items: Any, field: FieldDescriptor, draws: Random) -> None:
    if len(items) and draws.random() < 0.5:
        del items[0]
    elif field.message_type is not None:
        items.add()
    else:
        items.append(_drawn(field, draws))


def _drawn(field: FieldDescriptor, draws: Random) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return draws.randbytes(draws.choice(_LENGTHS))
        return draws.choice(_TEXTS)
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return draws.choice(_NUMBERS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return draws.random() < 0.5
    most = 2**32 - 1 if kind == FieldDescriptor.CPPTYPE_UINT32 else 2**64 - 1
    return min(draws.choice(_INTEGERS), most)

"""The golden messages: bytes of every form beside the values that they stand for."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message_factory import GetMessageClass

from fedtiny.wire.pb import fleet_pb2, tensors_pb2

FOLDER = Path(__file__).parents[1] / "vectors" / "wire"


def messages() -> list[dict[str, Any]]:
    """Messages of fleet.proto: name, fields, bytes in hex, and the value if they have one."""
    rows: list[dict[str, Any]] = json.loads((FOLDER / "messages.json").read_text())
    return rows


def vectors() -> list[dict[str, Any]]:
    """Vectors in all their forms."""
    rows: list[dict[str, Any]] = json.loads((FOLDER / "vectors.json").read_text())
    return rows


def kind(name: str) -> Any:
    """The class of a message."""
    for module in (fleet_pb2, tensors_pb2):
        if name in module.DESCRIPTOR.message_types_by_name:
            return GetMessageClass(module.DESCRIPTOR.message_types_by_name[name])
    raise KeyError(name)


def plain(value: Any) -> Any:
    """A value as JSON has it: bytes in hex, infinity as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__name__: plain(asdict(value))}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    return str(value) if value == math.inf else value

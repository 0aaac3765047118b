"""The bytes on the wire are pinned: what this version writes, and what another one has written."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from fedtiny.layout import Layout, Parameter
from fedtiny.masks import Mask
from fedtiny.values import DeviceCard, Quantised, Receipt, Update
from fedtiny.wire import codec
from fedtiny.wire.codec import Due
from fedtiny.wire.pb import fleet_pb2
from tests.wire.golden import kind, messages, plain, vectors

MESSAGES = {row["name"]: row for row in messages()}
VECTORS = {row["name"]: row for row in vectors()}


def read(row: dict[str, Any], data: bytes) -> Any:
    """The domain value of a golden message, read by the codec."""
    message = kind(row["message"]).FromString(data)
    if row["message"] == "Update":
        payload = bytes.fromhex(row["payload"])
        return codec.read_update(message, payload, Due(row["size"], len(payload)))
    readers = {"Answer": codec.read_answer, "Card": codec.read_card, "Receipt": codec.read_receipt}
    return readers[row["message"]](message)


def write(value: Any) -> Any:
    """The message of a domain value, written by the codec."""
    if isinstance(value, tuple):
        run, base, update = value
        return codec.write_update(update, run, base)
    if isinstance(value, DeviceCard):
        return codec.write_card(value)
    return codec.write_receipt(value) if isinstance(value, Receipt) else codec.write_answer(value)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_has_its_golden_bytes_and_is_read_back(name: str) -> None:
    row = MESSAGES[name]
    data = bytes.fromhex(row["hex"])
    written = ParseDict(row["fields"], kind(row["message"])())
    assert written.SerializeToString(deterministic=True) == data
    found = kind(row["message"]).FromString(data)
    assert MessageToDict(found, preserving_proto_field_name=True) == row["fields"]


@pytest.mark.parametrize("name", [name for name, row in MESSAGES.items() if "value" in row])
def test_a_value_has_its_golden_bytes_and_is_read_back(name: str) -> None:
    row = MESSAGES[name]
    data = bytes.fromhex(row["hex"])
    value = read(row, data)
    assert plain(value) == row["value"]
    assert write(value).SerializeToString(deterministic=True) == data


@pytest.mark.parametrize("name", [name for name, row in MESSAGES.items() if "value" in row])
def test_a_message_of_a_future_version_is_read(name: str) -> None:
    row = MESSAGES[name]
    # Fields 1,000 (a number of 8 bytes) and 1,001 (text): a tag is number << 3 | wire type.
    ungiven = _varint(1000 << 3 | 1) + bytes(8) + _varint(1001 << 3 | 2) + b"\x05later"
    assert plain(read(row, bytes.fromhex(row["hex"]) + ungiven)) == row["value"]


def _varint(number: int) -> bytes:
    low = bytes([number & 0x7F | 0x80]) if number > 0x7F else bytes([number])
    return low + (_varint(number >> 7) if number > 0x7F else b"")


def test_every_message_of_the_fleet_has_a_golden_one() -> None:
    alone = {row["message"] for row in MESSAGES.values()}
    within = {"Work", "ComeBack", "Dismissed", "Lease", "Manifest", "Instruction", "Candidate",
              "Phase", "Sgd", "Mask", "Growth", "FeatureSums", "Transform"}  # fmt: skip
    assert alone | within == set(fleet_pb2.DESCRIPTOR.message_types_by_name)
    assert all(any(part in str(row["value"]) for row in MESSAGES.values() if "value" in row)
               for part in ("Work", "ComeBack", "Dismissed"))  # fmt: skip


def test_golden_bytes_follow_from_the_format() -> None:
    # field 1, 8 bytes: 5; field 2, text of 8; field 3 left out, for it is empty
    by_hand = b"\x09" + struct.pack("<Q", 5) + b"\x12\x08accepted"
    assert MESSAGES["receipt: accepted"]["hex"] == by_hand.hex()
    # field 1, 4 bytes: 3; field 3, 12 bytes of three floats
    by_hand = b"\x0d" + struct.pack("<I", 3) + b"\x1a\x0c" + struct.pack("<3f", 1.0, -0.5, 0.25)
    assert VECTORS["whole"]["hex"] == by_hand.hex()
    # field 1: 300; field 4, 20 bytes: field 1, places 1, one between, 295 between (7 bits a byte);
    # field 2, three floats
    places = b"\x0a\x04\x01\x01\xa7\x02"
    by_hand = b"\x0d" + struct.pack("<I", 300) + b"\x22\x14" + places + b"\x12\x0c"
    assert VECTORS["places"]["hex"] == (by_hand + struct.pack("<3f", 2.0, -1.5, 0.25)).hex()
    # field 1: 10; field 8, 19 bytes: field 1, blocks of 8; field 2, two scales; field 3, the signs
    # ++------ and +-, the first in the lowest bit
    by_hand = b"\x0d" + struct.pack("<I", 10) + b"\x42\x13\x0d" + struct.pack("<I", 8)
    by_hand += b"\x12\x08" + struct.pack("<2f", 0.5, 2.0) + b"\x1a\x02\x03\x01"
    assert VECTORS["signs"]["hex"] == by_hand.hex()


def update_of(row: dict[str, Any]) -> Update:
    """What a golden vector is written from, and read as."""
    ranges = tuple(map(tuple, row["ranges"])) or ((0, row["size"]),)
    update = Update(0, 0, 0, 0, 1, _float32(row["values"]), ranges)
    if "places" in row:
        update = replace(update, places=struct.pack(f"<{len(row['places'])}I", *row["places"]))
    if "mask" in row:
        dead = Mask(row["size"], bytes(row["size"] + 7 >> 3))
        update = replace(update, mask=dead.moved((), row["mask"]))
    if "quantised" in row:
        small = row["quantised"]
        scales, q = _float32(small["scales"]), bytes.fromhex(small["q"])
        update = replace(update, quantised=Quantised(small["form"], small["block"], scales, q))
    return update


def _float32(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_has_its_golden_bytes_and_is_read_back(name: str) -> None:
    row = VECTORS[name]
    update, size = update_of(row), row["size"]
    given = codec.mask_name(update.mask.blob) if update.mask and "given" in row else b""
    written = codec.write_values(update, size, given)
    assert written.hex() == row["hex"]
    masks = {given: update.mask} if given and update.mask else {}
    due = Due(size, len(written), masks, Layout.of([Parameter("w", (size,))]))
    assert codec.read_vector(written, due) == (
        update.ranges, update.values, update.mask, update.places, update.quantised,
    )  # fmt: skip


def test_the_text_that_is_signed_is_pinned() -> None:
    manifest = codec.Manifest("model", 2, 4612, bytes([3]) * 32, bytes(64))
    by_hand = (
        b"fedtiny-manifest-v1\0" + b"model".ljust(16, b"\0") + bytes(range(8))
        + struct.pack("<I", 2) + struct.pack("<Q", 4612) + bytes([3]) * 32
    )  # fmt: skip
    assert manifest.text(bytes(range(8))) == by_hand
    assert len(by_hand) == 88

"""What every reader of messages checks. Each returns what it was given, or raises WireError."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from fedtiny.errors import WireError

MOST_NAME = 128
"""Characters of a name."""


def parse(kind: Any, data: bytes) -> Any:
    """The message of that class which the bytes are."""
    try:
        return kind.FromString(data)
    # Where protobuf is plain Python, as on 32-bit Arm, bad UTF-8 is an error of its own.
    except (DecodeError, UnicodeDecodeError) as error:
        name = kind.DESCRIPTOR.name
        raise WireError("malformed", f"{len(data):,} B are no {name}: {error}") from None


def present(message: Any, *names: str) -> None:
    """Every one of the fields was sent."""
    for name in names:
        if not message.HasField(name):
            raise WireError("malformed", f"{message.DESCRIPTOR.name} has no {name}")


def sized(data: bytes, count: int, what: str) -> bytes:
    """Data of exactly so many bytes."""
    if len(data) != count:
        raise WireError("length", f"{what} has {len(data):,} B; {count} B are due")
    return data


def text(found: str, what: str, most: int = MOST_NAME) -> str:
    """Text of at most so many characters."""
    if len(found) > most:
        raise WireError("text", f"{what} has {len(found):,} characters; at most {most:,} are due")
    return found


def one_of(word: str, known: tuple[str, ...], what: str) -> str:
    """A word that is known here."""
    if word not in known:
        raise WireError("unknown", f"the {what} {word[:MOST_NAME]!r} is none of {known}")
    return word


def within(number: Any, least: float, most: float, what: str) -> Any:
    """A number within its bounds."""
    if not least <= number <= most:  # nor is NaN
        raise WireError("number", f"{what} is {number:,}; it must be in [{least:,}, {most:,}]")
    return number


def at_most(items: Any, most: int, what: str) -> Any:
    """No more items than that."""
    if len(items) > most:
        raise WireError("count", f"{len(items):,} {what}; at most {most:,} are due")
    return items

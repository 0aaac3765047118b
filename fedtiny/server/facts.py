"""Single values that a coordinator remembers, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedtiny.server.storage import Database


def read_fact(database: Database, key: str) -> str | float | None:
    """The value, or None if there is none."""
    row = database.connection.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def write_fact(database: Database, key: str, value: str | float) -> None:
    """Remember the value; it counts when the transaction is committed."""
    database.connection.execute(
        "INSERT INTO facts (key, value) VALUES (?, ?) "
        "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (key, value),
    )

"""Places by name at which a test kills the coordinator: before and after each durable step.

``FEDTINY_CRASH=journal.before:3`` ends the process, as a power cut would, when that point is
reached for the third time. Without the variable a point costs one look into a dictionary.
"""

from __future__ import annotations

import os
import signal

POINTS = (
    "journal.before", "journal.after",
    "answer.before", "answer.after",
    "round-key.before", "round-key.after",
    "shred.before", "shred.after",
    "publish.before", "publish.after",
    "folder.before", "folder.after",
    "enrol.before", "enrol.after",
    "token.before", "token.after",
    "authority.before", "authority.after",
)  # fmt: skip
"""Every point there is; a test reaches each of them."""


def _armed() -> dict[str, int]:
    name, _, count = os.environ.get("FEDTINY_CRASH", "").partition(":")
    return {name: int(count or 1)} if name else {}


_LEFT = _armed()


def reach(name: str) -> None:
    """Ends the process if it was armed for this point, without flushing or closing anything."""
    if name not in _LEFT:
        return
    _LEFT[name] -= 1
    if _LEFT[name] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

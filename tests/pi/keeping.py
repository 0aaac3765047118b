"""Agents side by side, each kept up as the service of a board keeps it, until the run is over.

Where every device is needed, one that has died keeps the others waiting for as long as the run's
deadline. And on a busy machine the emulator dies now and then, whatever it emulates: by an
assertion of its own, or silently, and with any exit code; or it stands still.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.pi.board import kill

OVER = "every run is over\n"
_OWN_WORDS = ("Traceback (most recent call last)", "fedtiny-agent: ")
_MOST_STARTS = 4
_MOST_SILENT_S = 75.0  # more than an agent rests after a renewal that failed


Start = Callable[[IO[str]], "subprocess.Popen[str]"]
"""Starts an agent, in a group of processes of its own, that writes its standard error there."""


@dataclass
class Kept:
    """An agent: what starts it, and where all that it says is collected."""

    start: Start
    log: Path
    starts: int = 0
    process: subprocess.Popen[str] | None = None

    @property
    def said(self) -> str:
        """What it has said since its first start."""
        return self.log.read_text() if self.log.exists() else ""

    @property
    def code(self) -> int | None:
        """How it has ended, or None while it runs."""
        return self.process.poll() if self.process else None

    @property
    def is_done(self) -> bool:
        """Whether it has ended because the run is over."""
        return self.code == 0 and self.said.endswith(OVER)

    @property
    def stands_still(self) -> bool:
        """Whether it has said nothing for long; one that only waits may as well start again."""
        return time.time() - self.log.stat().st_mtime > _MOST_SILENT_S

    @property
    def may_start(self) -> bool:
        """Whether it did not end for a reason that it has told."""
        return self.starts < _MOST_STARTS and not any(word in self.said for word in _OWN_WORDS)

    def begin(self) -> None:
        """Start it, for the first time or once more."""
        self.end()
        self.log.touch()
        with self.log.open("a") as log:
            self.process = self.start(log)
        self.starts += 1

    def end(self) -> None:
        """Nothing of it runs any more."""
        if self.process:
            kill(self.process)

    def __str__(self) -> str:
        return f"starts: {self.starts}, code: {self.code}, said:\n{self.said}"


def until_over(agents: Sequence[Kept], within_s: float, told: Callable[[], str]) -> None:
    """Run the agents until each has heard that the run is over; afterwards none of them runs.

    Raises AssertionError, with what they and the coordinator have ``told``, when it takes longer,
    or when one ends otherwise and says why, or does so too often.
    """
    until = time.monotonic() + within_s
    try:
        while not all(agent.is_done for agent in agents):
            for agent in agents:
                _keep_up(agent)
            assert time.monotonic() < until, f"not over after {within_s:g} s"
            time.sleep(0.05)
    except AssertionError as error:
        heard = "\n".join([str(error), *map(str, agents), "coordinator:", told()])
        raise AssertionError(heard) from None
    finally:
        for agent in agents:
            agent.end()


def _keep_up(agent: Kept) -> None:
    runs = agent.process is not None and agent.code is None and not agent.stands_still
    if not runs and not agent.is_done:
        assert agent.may_start, f"{agent.log.name} has ended with {agent.code}"
        agent.begin()

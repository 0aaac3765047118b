"""The process of a strategy of Flower's: frames come in, frames go out, nothing is kept between.

It ends when the pipe that it reads is closed, however that came about.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import IO

from fedtiny.errors import FedtinyError
from fedtiny.flower import driving
from fedtiny.flower.frames import Tree, pack, read_frame, unpack, write_frame
from fedtiny.flower.grid import claim_process

CALLS: Mapping[str, Callable[..., Tree]] = {
    "check": driving.check,
    "begin": driving.begin,
    "configure": driving.configure,
    "aggregate": driving.aggregate,
    "evaluate": driving.evaluate,
}


def main() -> None:
    """Answer until there is nobody to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a strategy prints is no answer
    logging.getLogger("flwr").setLevel(logging.ERROR)
    claim_process()
    serve(sys.stdin.buffer, answers)


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """One answer for each request."""
    while (frame := read_frame(requests)) is not None:
        write_frame(answers, _answer(unpack(frame)))


def _answer(request: Tree) -> bytes:
    try:
        return pack({"result": CALLS[request["call"]](**request["arguments"])})
    except FedtinyError as error:
        told = str(error)
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    return pack({"error": told})


if __name__ == "__main__":
    main()

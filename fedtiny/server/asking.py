"""The operator's side of the socket over which a coordinator is operated."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fedtiny.errors import ExperimentError, FedtinyError, RunError
from fedtiny.wire.services import OPERATOR, stubs

SOCKET = "operator.sock"
"""The socket, in the coordinator's folder."""
_MOST_SOCKET_BYTES = 107  # sun_path, without its final zero
_ANSWER_S = 30.0


def ask(folder: Path, method: str, request: Any) -> dict[str, Any]:
    """The document with which the coordinator of a folder answers.

    Raises RunError when none serves there, and the errors that it answers with.
    """
    import grpc

    if not (folder / SOCKET).exists():
        raise _nobody(folder)
    # The list of ten thousand devices is more than gRPC takes unless it is told to.
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(socket_address(folder), options) as channel:
        try:
            reply = getattr(stubs(OPERATOR, channel), method)(request, timeout=_ANSWER_S)
        except grpc.RpcError as error:
            raise _error_of(error, folder) from None
    return dict(json.loads(reply.json))


def _error_of(error: Any, folder: Path) -> FedtinyError:
    from grpc import StatusCode

    if error.code() is StatusCode.UNAVAILABLE:
        return _nobody(folder)
    if error.code() is StatusCode.DEADLINE_EXCEEDED:
        return RunError(
            f"the coordinator of {folder} has not answered for {_ANSWER_S:g} s; look at its log"
        )
    kind = ExperimentError if error.code() is StatusCode.INVALID_ARGUMENT else RunError
    return kind(error.details())


def _nobody(folder: Path) -> RunError:
    start = f"fedtiny coordinator EXPERIMENT --dir {folder}"
    return RunError(f"no coordinator serves {folder}; start one with: {start}")


def socket_address(folder: Path) -> str:
    """The address of the operator's socket as gRPC writes it.

    Raises RunError where the system's limit on the names of sockets is exceeded.
    """
    path = min(str(folder.absolute() / SOCKET), os.path.relpath(folder / SOCKET), key=len)
    if len(os.fsencode(path)) > _MOST_SOCKET_BYTES:
        raise RunError(
            f"{path} has {len(os.fsencode(path))} bytes, the name of a socket may have "
            f"{_MOST_SOCKET_BYTES}; choose a shorter --dir"
        )
    return f"unix:{path}"

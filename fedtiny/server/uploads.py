"""Updates that arrive in chunks, put together within the bounds of what may come."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedtiny.errors import WireError
from fedtiny.wire.codec import CHUNK_BYTES
from fedtiny.wire.pb import fleet_pb2 as pb


@dataclass(eq=False, slots=True)
class Upload:
    """The chunks of one device's update so far."""

    lease: int
    total: int
    chunks: bytearray = field(default_factory=bytearray)


class Uploads:
    """One upload for each device at most, of ``most_bytes`` at most."""

    def __init__(self) -> None:
        self._open: dict[int, Upload] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, device: int, request: pb.SubmitRequest, most_bytes: int) -> bytes | int:
        """The whole payload when this chunk completes it, else how many bytes have come.

        A chunk that has come before is passed over; one that would leave a gap is refused by the
        number of bytes, from which the device goes on. Raises WireError beyond the bounds.
        """
        _check(request, most_bytes)
        if request.offset == 0 and len(request.chunk) == request.total:
            self._open.pop(device, None)
            return request.chunk
        upload = self._open.get(device)
        if upload is None or (upload.lease, upload.total) != (request.update.lease, request.total):
            upload = self._open[device] = Upload(request.update.lease, request.total)
        if request.offset == len(upload.chunks):
            upload.chunks += request.chunk
        if len(upload.chunks) < upload.total:
            return len(upload.chunks)
        return bytes(self._open.pop(device).chunks)

    def forget(self, device: int) -> None:
        """The device begins something else."""
        self._open.pop(device, None)


def _check(request: pb.SubmitRequest, most_bytes: int) -> None:
    for name in ("update", "offset", "total"):
        if not request.HasField(name):
            raise WireError("malformed", f"SubmitRequest has no {name}")
    if request.total > most_bytes:
        raise WireError(
            "size", f"an update of {request.total:,} B; this run takes {most_bytes:,} B at most"
        )
    if len(request.chunk) > CHUNK_BYTES or request.offset + len(request.chunk) > request.total:
        raise WireError(
            "chunk",
            f"a chunk of {len(request.chunk):,} B at {request.offset:,} of {request.total:,}; a "
            f"chunk has {CHUNK_BYTES:,} B at most",
        )
    if request.total and not request.chunk:
        raise WireError("chunk", f"an empty chunk of an update of {request.total:,} B")

"""Everything that a board needs to become a device of a fleet, in one file, for a place without a
network: wheels, the native runtime among them, an installer, and the unit of the service.

The same input gives the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import fedtiny
from fedtiny.bundle.downloads import abi, download
from fedtiny.bundle.targets import Target, target
from fedtiny.bundle.wheel import write_wheel
from fedtiny.errors import ExperimentError

FOLDER = "fedtiny-agent"
MANIFEST = "MANIFEST"
_BOARD_FILES = Path(__file__).with_name("raspberry_pi")
_PROGRAMS = ("install.sh", "fedtiny-agent.sh")
_EPOCH_S = 315_532_800  # 1980: tar warns of files that are older


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was written: its size, its SHA-256, and that of each file in it."""

    file: Path
    machine: str
    python: str
    nbytes: int
    sha256: str
    contents: Mapping[str, str]


def make_bundle(machine: str, python: str = "3.11", out: Path | None = None) -> Bundle:
    """Write the bundle for a kind of board.

    Args:
        machine: As ``uname -m`` calls it: aarch64 or armv7l.
        python: The version of the board's Python, without its third figure.
        out: The file; else one in this folder whose name tells version, Python and machine.

    Raises ExperimentError for a board or Python that it cannot be made for and a file that cannot
    be written, RunError if a compiler, pip or a wheel is missing.
    """
    chosen, name = target(machine), abi(python)
    out = out or Path(f"fedtiny-agent-{fedtiny.__version__}-{name}-{machine}.tar.gz")
    with TemporaryDirectory() as scratch:
        wheels = [*download(Path(scratch), chosen, python), write_wheel(Path(scratch), chosen)]
        files = {f"wheels/{path.name}": path.read_bytes() for path in wheels}
    return write_bundle(out, chosen, python, files)


def write_bundle(out: Path, chosen: Target, python: str, wheels: Mapping[str, bytes]) -> Bundle:
    """The bundle of these wheels, by name, with all else that belongs in it."""
    board = {path.name: path.read_bytes() for path in _BOARD_FILES.iterdir()}
    kind = {"TARGET": f"{python} {chosen.multiarch}\n".encode()}
    files = dict(sorted({**board, **kind, **wheels}.items()))
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()
    packed = _pack(files | {MANIFEST: manifest})
    _write(out, packed)
    digest = hashlib.sha256(packed).hexdigest()
    return Bundle(out, chosen.machine, python, len(packed), digest, sums)


def _pack(files: Mapping[str, bytes]) -> bytes:
    """The files in one folder of a compressed archive, without a trace of when and who."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile("", "wb", fileobj=packed, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size, entry.mtime = len(content), _EPOCH_S
            entry.mode = 0o755 if name in _PROGRAMS else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _write(out: Path, content: bytes) -> None:
    partial = out.with_name(f"{out.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(out)
    except OSError as error:
        raise ExperimentError(f"{out} cannot be written: {error.strerror}") from error

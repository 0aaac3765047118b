"""The wheel of fedtiny for another processor: this package, with the runtime compiled for it.

It is made of the package that is installed here, so it needs no checkout.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import fedtiny
from fedtiny.bundle.targets import Target
from fedtiny.engine.runtime import build
from fedtiny.errors import RunError

PACKAGE = Path(fedtiny.__file__).parent
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip file knows
_COMMAND = "[console_scripts]\nfedtiny-agent = fedtiny.agent.cli:main\n"
_GENERATED = ("__pycache__", build.LIB.name)


def write_wheel(folder: Path, target: Target) -> Path:
    """The wheel, written into ``folder``. Raises RunError if the runtime cannot be compiled."""
    library = compile_runtime(folder / "runtime", target)
    version = fedtiny.__version__
    path = folder / f"fedtiny-{version}-py3-none-linux_{target.machine}.whl"
    notes = f"fedtiny-{version}.dist-info"
    files = {
        **dict(_package()),
        f"fedtiny/{(build.LIB / library.name).relative_to(PACKAGE)}": library.read_bytes(),
        **{f"{notes}/{name}": content for name, content in _notes(target)},
    }
    rows = [_row(name, content) for name, content in files.items()]
    files[f"{notes}/RECORD"] = "".join([*rows, f"{notes}/RECORD,,\n"]).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            wheel.writestr(_entry(name), content)
    return path


def compile_runtime(folder: Path, target: Target) -> Path:
    """The native runtime for the target, compiled by zig into ``folder``."""
    if find_spec("ziglang") is None:
        raise RunError(
            f"the runtime is compiled for {target.machine} by zig, which is not installed here: "
            "pip install 'fedtiny[bundle]'"
        )
    zig = shlex.join([sys.executable, "-m", "ziglang", "cc", *target.compiler])
    try:
        (library,) = build.build(folder, variants=["base"], cc=zig, extra_flags=["-s"])
    except build.BuildError as error:
        raise RunError(f"the runtime does not compile for {target.machine}: {error}") from error
    return library


def _package() -> Iterator[tuple[str, bytes]]:
    for path in sorted(PACKAGE.rglob("*")):
        name = path.relative_to(PACKAGE)
        if path.is_file() and not set(name.parts) & set(_GENERATED):
            yield f"fedtiny/{name.as_posix()}", path.read_bytes()


def _notes(target: Target) -> Iterator[tuple[str, bytes]]:
    installed = metadata.distribution("fedtiny")
    yield "METADATA", (installed.read_text("METADATA") or "").encode()
    yield "entry_points.txt", _COMMAND.encode()
    tag = f"py3-none-linux_{target.machine}"
    lines = "Wheel-Version: 1.0", "Generator: fedtiny", "Root-Is-Purelib: false", f"Tag: {tag}"
    yield "WHEEL", "".join(f"{line}\n" for line in lines).encode()
    for file in sorted(installed.files or ()):
        if "licenses" in file.parts:
            yield f"licenses/{file.name}", file.read_binary()


def _row(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n"


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o100644 << 16
    return entry

"""Compiles the C99 runtime beside this file into one shared library for each instruction set.

Uses the standard library only and imports nothing of fedtiny, because the installer runs it
before the package can be imported. Every variant computes the same bits: products and sums are
never contracted, and the kernels fix the order of every reduction.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIB = HERE / "lib"

# -Wno-psabi: the lanes are internal to a library, so the ABI of wide vectors does not matter.
FLAGS = (
    *("-std=c99", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno"),
    *("-Wall", "-Wextra", "-Wvla", "-Wno-psabi"),
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "base": (),
    "v1": ("-march=x86-64",),
    "v3": ("-march=x86-64-v3", "-mno-fma"),
}
COMPILERS = ("cc", "gcc", "clang")


class BuildError(RuntimeError):
    """The compiler refused the runtime; the message holds its command and its words."""


class NoCompilerError(BuildError):
    """There is no C compiler, so there is no native runtime."""


def variants_here() -> tuple[str, ...]:
    """The libraries that this machine's architecture can choose from, the plainest first."""
    return ("v1", "v3") if platform.machine().lower() in ("x86_64", "amd64") else ("base",)


def sources(suffixes: Iterable[str] = (".c",)) -> list[Path]:
    """The runtime's files with one of these suffixes, in a stable order."""
    files = (path for folder in (HERE, HERE / "host") for path in folder.glob("*"))
    return sorted(path for path in files if path.suffix in suffixes)


def compiler(cc: str | None = None) -> list[str]:
    """The compiler's command: `cc`, else $CC, else the first usual name that is installed."""
    wanted = cc or os.environ.get("CC")
    for name in [wanted] if wanted else COMPILERS:
        command = shlex.split(name)
        if shutil.which(command[0]):
            return command
    raise NoCompilerError(
        f"no C compiler: tried {wanted or ', '.join(COMPILERS)}; install gcc or clang, or set CC"
    )


def _digest(command: Sequence[str]) -> str:
    state = hashlib.sha256("\0".join(command).encode())
    for path in sources((".c", ".h")):
        state.update(f"\0{path.relative_to(HERE)}\0".encode() + path.read_bytes())
    return state.hexdigest()


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"{shlex.join(command)}\n{result.stderr.strip()}")


def _build_one(library: Path, command: Sequence[str]) -> Path:
    digest, digest_file = _digest(command), library.with_suffix(".sha256")
    if library.exists() and digest_file.exists() and digest_file.read_text() == digest:
        return library
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        built, noted = Path(scratch, library.name), Path(scratch, digest_file.name)
        _run([*command, *map(str, sources((".c",))), "-lm", "-o", str(built)])
        noted.write_text(digest)
        os.replace(built, library)
        os.replace(noted, digest_file)
    return library


def build(
    out_dir: str | os.PathLike[str],
    variants: Iterable[str] | None = None,
    cc: str | None = None,
    extra_flags: Sequence[str] = (),
) -> list[Path]:
    """Bring `libfedtiny_<variant>.so` in `out_dir` up to date, and return their paths.

    A library appears whole or not at all. One whose sources and flags have not changed is left
    alone. Raises NoCompilerError or BuildError.
    """
    if not sources():
        return []
    command = [*compiler(cc), *FLAGS, "-shared"]
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)

    def build_variant(name: str) -> Path:
        flags = (*VARIANTS[name], *extra_flags)
        return _build_one(folder / f"libfedtiny_{name}.so", [*command, *flags])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(build_variant, variants_here() if variants is None else variants))


def build_or_say_why(out_dir: str | os.PathLike[str] = LIB) -> list[Path]:
    """As `build`, except that a missing compiler is one printed line and no library."""
    try:
        return build(out_dir)
    except NoCompilerError as error:
        print(f"fedtiny: {error}. The slower reference executor is used.", file=sys.stderr)
        return []


if __name__ == "__main__":
    try:
        for library in build_or_say_why(*sys.argv[1:2]):
            print(library)
    except BuildError as error:
        sys.exit(str(error))

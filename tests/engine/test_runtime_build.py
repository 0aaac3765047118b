"""What the compiler says of the runtime: no warnings, and the bounds that a report counts on."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from fedtiny.engine.built import RUNTIME_BYTES, STACK_BYTES
from fedtiny.engine.runtime import build

PORTABLE = [path for path in build.sources() if path.parent == build.HERE]
SMALL = ("-Os", "-DFT_SMALL")  # as for a microcontroller
# What the library functions below the runtime (memcpy, memset, memcmp) may take.
LIBRARY_FRAME_BYTES = 64

NODE = re.compile(
    r'^node: \{ title: "([^"]+)" label: "[^"]*?(?:\\n(\d+) bytes \(([^)]*)\))?"', re.M
)
EDGE = re.compile(r'^edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"', re.M)


def compiled(folder: Path, *flags: str) -> list[Path]:
    """The object files of the portable part."""
    command = [*build.compiler(), *build.FLAGS, *SMALL, *flags, "-c", *map(str, PORTABLE)]
    subprocess.run(command, cwd=folder, check=True)
    return sorted(folder.glob("*.o"))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_sources_compile_without_a_warning(tmp_path: Path) -> None:
    """Not among the flags of a build: a newer compiler's new warning must not stop a user."""
    build.build(tmp_path, build.variants_here()[:1], extra_flags=["-Werror"])
    compiled(tmp_path, "-Werror")


def call_graph(folder: Path) -> tuple[dict[str, int], dict[str, set[str]]]:
    """Bytes of each function's frame, and whom it calls, as GCC tells them."""
    text = "".join(path.read_text() for path in sorted(folder.glob("*.ci")))
    frames: dict[str, int] = {}
    for name, size, kind in NODE.findall(text):
        assert kind in ("", "static", "dynamic,bounded"), f"the frame of {name} has no bound"
        frames[name] = max(frames.get(name, 0), int(size or 0))
    calls: dict[str, set[str]] = {name: set() for name in frames}
    for caller, callee in EDGE.findall(text):
        calls[caller].add(callee)
    return frames, calls


def test_the_stack_stays_below_its_bound(tmp_path: Path) -> None:
    """The frames along the worst chain of calls. They are those of this host, whose registers and
    pointers are at least as wide as a microcontroller's."""
    try:
        compiled(tmp_path, "-fno-stack-protector", "-fstack-usage", "-fcallgraph-info=su")
    except subprocess.CalledProcessError:
        pytest.skip("this compiler does not tell its call graph")
    frames, calls = call_graph(tmp_path)
    assert "__indirect_call" not in frames

    @cache
    def worst(name: str, above: tuple[str, ...] = ()) -> int:
        assert name not in above, f"{name} calls itself"
        below = [worst(callee, (*above, name)) for callee in calls[name]]
        return (frames[name] or LIBRARY_FRAME_BYTES) + max(below, default=0)

    entries = [name for name in frames if name.startswith("ft_") and frames[name]]
    assert {"ft_check", "ft_step", "ft_evaluate", "ft_calibrate"} <= set(entries)
    assert max(map(worst, entries)) <= STACK_BYTES <= 2 * max(map(worst, entries))


def test_the_code_stays_below_its_bound(tmp_path: Path) -> None:
    """Code and constants; the tables that unwind a stack are not for a microcontroller."""
    objects = compiled(tmp_path, "-fno-pic", "-fno-asynchronous-unwind-tables")
    sizes = subprocess.run(["size", *objects], capture_output=True, text=True, check=True).stdout
    rows = [list(map(int, line.split()[:3])) for line in sizes.splitlines()[1:]]
    code, data, zeroed = map(sum, zip(*rows, strict=True))
    assert data == zeroed == 0
    assert code <= RUNTIME_BYTES <= 2 * code

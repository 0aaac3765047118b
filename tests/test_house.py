"""The rules that no other tool checks: sizes, names, what an import loads, what is in a wheel."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import pytest

import fedtiny
from fedtiny.engine.runtime import build

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fedtiny"
MODULES = sorted(PACKAGE.rglob("*.py"))
# The runtime proper is what a microcontroller gets; host/ is for the simulator and the agent.
RUNTIME_C = [path for path in build.sources() if path.parent == build.HERE]
C_FUNCTIONS_A_BOARD_HAS = {"memcpy", "memmove", "memset", "memcmp", "sqrtf", "sqrt"}


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    return lines - ((docstring.end_lineno or 0) - docstring.lineno + 1)


def _functions() -> Iterator[tuple[int, str]]:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield _body_lines(node), f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def _python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


# --- sizes and names


def test_functions_are_short() -> None:
    functions = sorted(_functions(), reverse=True)
    lines = [count for count, _ in functions]
    assert [name for count, name in functions if count > 60] == []
    assert median(lines) <= 7
    assert quantiles(lines, n=10)[-1] <= 28, functions[: len(functions) // 10]


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in MODULES}
    assert {str(path): lines for path, lines in lengths.items() if lines > 600} == {}


def test_no_module_is_an_attic() -> None:
    attics = {"utils", "util", "common", "helpers", "misc", "manager"}
    folders = (PACKAGE, ROOT / "tests", ROOT / "benchmarks")
    assert [p for folder in folders for p in folder.rglob("*.py") if p.stem in attics] == []


def test_the_public_names_are_few_and_all_there() -> None:
    assert {"compile", "Program", "Learner", "simulate", "Result"} <= set(fedtiny.__all__)
    assert len(fedtiny.__all__) <= 25
    assert set(fedtiny.__all__) <= set(dir(fedtiny))
    for name in fedtiny.__all__:
        assert getattr(fedtiny, name).__doc__, f"fedtiny.{name} has no docstring"
    with pytest.raises(AttributeError, match="no_such_name"):
        fedtiny.__getattr__("no_such_name")


# --- what an import loads


def test_a_device_loads_neither_torch_nor_ray_nor_flower() -> None:
    rooms = "device.session, fedtiny.device.learner, fedtiny.device.link, fedtiny.engine.native"
    loaded = _python(f"import sys, fedtiny.{rooms}; print(*sys.modules)").split()
    assert {"torch", "ray", "flwr"}.isdisjoint(loaded)


def test_importing_fedtiny_loads_no_numpy() -> None:
    assert "numpy" not in _python("import sys, fedtiny; print(*sys.modules)").split()


# A board of 32-bit Arm has no numpy: these are the rooms that it lives in.
@pytest.mark.parametrize(
    "module",
    [
        "fedtiny.rng",
        "fedtiny.values",
        "fedtiny.device.session",
        "fedtiny.device.learner",
        "fedtiny.device.link",
        "fedtiny.agent.agent",
        "fedtiny.wire.codec",
        "fedtiny.engine.program",
        "fedtiny.engine.native",
    ],
)
def test_a_device_without_numpy_imports(module: str) -> None:
    _python(f"import sys; sys.modules['numpy'] = None; import {module}")


# --- the C runtime


@pytest.mark.parametrize("source", build.sources((".c", ".h")), ids=lambda path: path.name)
def test_the_runtime_never_allocates(source: Path) -> None:
    assert not re.search(r"\b(malloc|calloc|realloc|free|alloca)\s*\(", source.read_text())


def test_the_runtime_needs_nothing_that_a_board_lacks(tmp_path: Path) -> None:
    flags = [*build.FLAGS, "-O0", "-fno-stack-protector"]
    subprocess.run(
        [*build.compiler(), *flags, "-c", *map(str, RUNTIME_C)], cwd=tmp_path, check=True
    )
    command = ["nm", "-P", "-A", *map(str, tmp_path.glob("*.o"))]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[1:3] for line in table.splitlines()]
    defined = {name for name, kind in symbols if kind != "U"}
    needed = {name for name, kind in symbols if kind == "U"} - defined
    assert needed - {"_GLOBAL_OFFSET_TABLE_"} <= C_FUNCTIONS_A_BOARD_HAS


def test_a_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "sources", lambda suffixes=(): [build.HERE / "ft_heap.c"])
    (first,) = build.build(tmp_path, variants=["base"], extra_flags=["-O0"])
    inode = first.stat().st_ino
    build.build(tmp_path, variants=["base"], extra_flags=["-O0"])
    assert first.stat().st_ino == inode
    build.build(tmp_path, variants=["base"], extra_flags=["-O0", "-DANOTHER_FLAG"])
    assert first.stat().st_ino != inode


def test_a_missing_compiler_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(build.NoCompilerError, match=r"/nonexistent.*install gcc or clang"):
        build.build(tmp_path, cc="/nonexistent")


def test_what_the_compiler_says_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match="no-such-option"):
        build.build(tmp_path, variants=["base"], extra_flags=["--no-such-option"])
    assert list(tmp_path.iterdir()) == []


# --- the wheel


def _wheel(tmp_path: Path, **environment: str) -> tuple[Path, str]:
    """The wheel of a clean copy of the sources, and what was printed while it was built."""
    copy = tmp_path / "sources"
    generated = shutil.ignore_patterns("__pycache__", "*.so", "*.sha256")
    shutil.copytree(PACKAGE, copy / "fedtiny", ignore=generated)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    options = ["-v", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path)]
    result = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(copy)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    return wheel, result.stdout + result.stderr


def _quick_compiler(folder: Path) -> str:
    """The compiler without its optimiser, which takes most of its time."""
    quick = folder / "cc"
    quick.write_text(f'#!/bin/sh\nexec {shlex.join(build.compiler())} "$@" -O0\n')
    quick.chmod(0o755)
    return str(quick)


def _libraries(wheel: Path) -> list[str]:
    return [Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


TRAINS_WITHOUT_A_RUNTIME = """
import warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    import fedtiny
    tables = {
        "model": {"build": "sine_mlp"}, "data": {"source": "sine", "support": 4},
        "strategy": {"name": "fedavg", "cohort": 2}, "fleet": {"devices": 5},
        "run": {"rounds": 2},
    }
    result = fedtiny.simulate(tables)
print(fedtiny.__file__)
print(sum("reference executor" in str(w.message) for w in told), "warning")
print(result.summary["rounds"], "rounds")
"""


def test_without_a_compiler_the_wheel_is_plain_python_and_says_so(tmp_path: Path) -> None:
    wheel, printed = _wheel(tmp_path, CC="/nonexistent")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert _libraries(wheel) == []
    assert printed.count("no C compiler") == 1
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "-t", site, wheel], check=True
    )
    told = _python(f"import sys; sys.path.insert(0, {str(site)!r})\n{TRAINS_WITHOUT_A_RUNTIME}")
    assert told.splitlines() == [str(site / "fedtiny/__init__.py"), "1 warning", "2 rounds"]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_with_a_compiler_one_wheel_serves_every_python(tmp_path: Path) -> None:
    wheel, _ = _wheel(tmp_path, CC=_quick_compiler(tmp_path))
    machine = re.sub(r"[-.]", "_", sysconfig.get_platform())
    assert wheel.name.endswith(f"-py3-none-{machine}.whl")
    expected = [f"libfedtiny_{variant}.so" for variant in build.variants_here()]
    assert sorted(_libraries(wheel)) == sorted(expected)

"""The model of a run for use elsewhere: as named arrays, or as a C program for a device."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.durable import naming_files
from fedtiny.engine.image import NONE
from fedtiny.engine.program import Program
from fedtiny.engine.runtime import build
from fedtiny.errors import RunError
from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from fedtiny.pruning import largest
from fedtiny.runs import RunFolder, write_npz
from fedtiny.tensors import FLOAT_BYTES

if TYPE_CHECKING:
    from fedtiny.masks import Mask
    from fedtiny.tensors import Float32


_ELSEWHERE = "choose a place that can be written with --out"


def export_npz(run: RunFolder, out: Path | None = None, round: int | None = None) -> Path:
    """The model after a round, or the last, as the named arrays of a new ``.npz`` file.

    Without ``out`` it lies in the folder's ``export``. Raises RunError when ``out`` exists.
    """
    path = _new(out or run.path / "export" / f"{_stem(run, round)}.npz")
    write_npz(path, run.model(round))
    return path


def export_c(
    run: RunFolder, out: Path | None = None, round: int | None = None, profile: str = ""
) -> Path:
    """A new folder with a C99 program that predicts and trains as a device of the profile does.

    Without a profile it is that of the first in the experiment that fits its budget. Raises
    RunError when ``out`` exists or the profile has no Program.
    """
    workload = Workload.of(Experiment.parse(*run.source))
    name, program = _program(workload, profile)
    path = out or run.path / "export" / f"{_stem(run, round)}-{name}"
    write_c(program, workload.layout.flatten(run.model(round)), path)
    return path


def _stem(run: RunFolder, round: int | None) -> str:
    return f"round-{(run.model_rounds() or [0])[-1] if round is None else round:06d}"


def _program(workload: Workload, name: str) -> tuple[str, Program]:
    names = list(workload.experiment.fleet.profiles)
    if name and name not in names:
        raise RunError(f"the experiment has no profile {name!r}; it has {', '.join(names)}")
    tried = [profile for profile in workload.profiles if name in ("", profile.name)]
    for profile in tried:
        if profile.program:
            return profile.name, profile.program
    raise RunError("; ".join(reason for profile in tried for reason in profile.reasons))


def _new(path: Path) -> Path:
    if path.exists():
        raise RunError(f"{path} is there already; remove it, or choose another with --out")
    with naming_files(_ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


# ---- C ---------------------------------------------------------------------------------------


def write_c(program: Program, vector: Float32, path: Path) -> None:
    """The program's image, the vector and its mask as C arrays, with all that is needed to run
    them."""
    written = {"model.h": _header(program), "model.c": _source(program, vector)}
    with naming_files(_ELSEWHERE), as_file(files(__package__).joinpath("c")) as template:
        shutil.copytree(template, _new(path))
        runtime = path / "runtime"
        runtime.mkdir()
        for source in build.sources((".c", ".h")):
            if source.parent == build.HERE:
                shutil.copy(source, runtime)
        for name, text in written.items():
            (path / name).write_text(text)


def _header(program: Program) -> str:
    tables, classes = program.tables, program.loss == "cross_entropy"
    scale = tables.tensors[tables.input].scale
    figures = {
        "IMAGE_BYTES": len(program.image),
        "VECTOR_FLOATS": tables.vector_floats,
        "PARAM_FLOATS": tables.param_floats,
        "FROZEN_FLOATS": tables.frozen_words,
        "ARENA_FLOATS": -(-tables.arena_bytes // FLOAT_BYTES),
        "STATE_FLOATS": tables.state_floats,
        "BATCH": program.batch,
        "INPUTS": int(np.prod(program.sample_shape)),
        "OUTPUTS": int(np.prod(program.output_shape)),
        "HAS_CLASSES": int(classes),
        "IS_PRUNED": int(program.density < 1),
        "IS_INT8": int(scale != NONE),
        "INPUT_SCALE_AT": tables.tensors[scale].offset // FLOAT_BYTES if scale != NONE else 0,
    }
    defines = "\n".join(f"#define MODEL_{name} {value}u" for name, value in figures.items())
    return (
        f"/* Program {program.digest} */\n#ifndef MODEL_H\n#define MODEL_H\n\n"
        f"#include <stdint.h>\n\n{defines}\n\n"
        "/* The image as little-endian words, which makes it aligned. */\n"
        "extern const uint32_t model_image[];\nextern const float model_vector[];\n"
        "/* Which weights of a pruned model live. */\nextern const uint8_t model_mask[];\n\n"
        "#endif\n"
    )


def _source(program: Program, vector: Float32) -> str:
    padded = program.image + bytes(-len(program.image) % 4)
    words = (f"0x{word:08x}u" for word in np.frombuffer(padded, "<u4"))
    # Hexadecimal literals are exact, whatever the compiler's decimal conversion does.
    floats = (f"{value.hex()}f" for value in vector.astype(float).tolist())
    mask = map(str, live_weights(program, vector).bits if program.density < 1 else b"\0")
    return (
        '#include "model.h"\n\n'
        f"const uint32_t model_image[] = {{\n{_rows(list(words), 8)}\n}};\n\n"
        f"const float model_vector[] = {{\n{_rows(list(floats), 4)}\n}};\n\n"
        f"const uint8_t model_mask[] = {{\n{_rows(list(mask), 16)}\n}};\n"
    )


def live_weights(program: Program, vector: Float32) -> Mask:
    """The weights that are not 0; where the board holds fewer, the largest of each layer."""
    arrays = program.layout.unflatten(vector)
    found = {name: int(np.count_nonzero(arrays[name])) for name in program.prunable}
    total = sum(found.values())
    held = min(total, program.capacity)
    counts = {name: count * held // max(total, 1) for name, count in found.items()}
    return largest(vector, program.layout, counts)


def _rows(items: Sequence[str], width: int) -> str:
    def rows() -> Iterator[str]:
        for start in range(0, len(items), width):
            yield "  " + ", ".join(items[start : start + width])

    return ",\n".join(rows())

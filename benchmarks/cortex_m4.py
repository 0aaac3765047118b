"""Instructions a multiply-add of an emulated Cortex-M4, which learns what this machine does.

    python benchmarks/cortex_m4.py

The runtime is cross-compiled as a microcontroller takes it and runs under QEMU, where each
instruction takes a nanosecond: what is counted are instructions, no cycles. It
needs a cross-compiler and the emulator, but no C library.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedtiny.engine import zoo
from fedtiny.engine.builder import Net, Value
from fedtiny.engine.built import Build
from fedtiny.engine.compile import build as passes
from fedtiny.engine.native import HyperStruct, NativeExecutor
from fedtiny.engine.ops import macs
from fedtiny.engine.program import Hyper, Program
from fedtiny.engine.runtime import build

TOOLS = ("arm-none-eabi-gcc", "qemu-system-arm")
INSTALL = "apt-get install --no-install-recommends gcc-arm-none-eabi qemu-system-arm"
TICK_INSTRUCTIONS = 40
FLAGS = (
    *("-std=c99", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Wvla"),
    *("-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard", "-DFT_SMALL"),
    *("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-nostdlib"),
    "-fno-tree-loop-distribute-patterns",  # memcpy must not become a call of itself
)
QEMU = (
    *("qemu-system-arm", "-M", "mps2-an386", "-cpu", "cortex-m4", "-nographic", "-monitor", "none"),
    *("-serial", "none", "-semihosting-config", "enable=on,target=native"),
    *("-icount", "shift=0,align=off,sleep=off", "-kernel"),
)
_BOARD = Path(__file__).with_name("board")
_FIGURES = struct.Struct("<IIfI")  # `figures` of main.c

STREAM = (2**40 + 7, 3, 9)


def missing() -> list[str]:
    """The tools that are not installed here."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def firmware(folder: Path, optimise: str = "-O2") -> Path:
    """The runtime and its board in one file."""
    elf = folder / f"firmware{optimise}.elf"
    portable = [path for path in build.sources() if path.parent == build.HERE]
    subprocess.run(
        ["arm-none-eabi-gcc", *FLAGS, optimise, f"-I{_BOARD / 'include'}", f"-I{build.HERE}",
         "-T", _BOARD / "board.ld", "-o", elf, *_BOARD.glob("*.c"), *portable, "-lgcc"], check=True,
    )  # fmt: skip
    return elf


@dataclass(frozen=True)
class Task:
    """Some steps on one batch."""

    program: Program
    vector: Any
    x: Any
    y: Any
    hyper: Hyper
    steps: int = 1

    def file(self) -> bytes:
        """As the board reads it."""
        hyper = HyperStruct.of(self.hyper)
        hyper.run, hyper.round, hyper.device = STREAM
        image, x, y = (bytes(part) for part in (self.program.image, self.x, self.y))
        sizes = struct.pack("<4I", len(image), self.steps, len(x), len(y))
        padding = bytes(-len(image) % 4)
        return b"".join((sizes, bytes(hyper), image, padding, bytes(self.vector), x, y))

    def here(self) -> bytes:
        """The vector that this machine's runtime ends with."""
        executor = NativeExecutor(self.program.image)
        executor.load(self.vector)
        executor.seed(*STREAM)
        for _ in range(self.steps):
            executor.step(self.x, self.y, self.hyper)
        return bytes(executor.store())


@dataclass(frozen=True)
class Outcome:
    """What the board made of a task."""

    loss: float
    stack_bytes: int
    instructions: tuple[int, ...]
    """Of each op in the last step."""
    vector: bytes


def emulated(elf: Path, task: Task) -> Outcome:
    """Run the task on the board."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "in").write_bytes(task.file())
        subprocess.run([*QEMU, elf], cwd=folder, check=True, timeout=300)
        out = Path(folder, "out").read_bytes()
    _, stack_bytes, loss, ops = _FIGURES.unpack_from(out)
    ticks = struct.unpack_from(f"<{ops}I", out, _FIGURES.size)
    instructions = tuple(TICK_INSTRUCTIONS * each for each in ticks)
    return Outcome(loss, stack_bytes, instructions, out[_FIGURES.size + 4 * ops :])


# ---- what is measured ------------------------------------------------------------------------

PLAN = "biases:22+last:1"
PUBLISHED = "| TinyEngine, MCUNet, 49 KB plan | 66.3 M | 23 M | 2.9 | 130.0 M | 32.7 M | 4.0 |  |"
"""Its generated code, built with -O2 and counted in the same way."""
NETS: dict[str, tuple[Callable[[], Net], str]] = {
    "MobileNetV2-0.35, 96 px": (
        lambda: zoo.mobilenet_v2(96, 10, 0.35, "none"),
        "conv49.weight{in=1/4},conv46.weight{in=1/4},conv43.weight{in=1/2},conv40.weight",
    ),
    "MCUNet, 128 px": (
        lambda: zoo.mcunet(128, 10, "none"),
        "conv40.weight{in=1/4},conv37.weight{in=1/4},conv34.weight{in=1/4},conv31.weight{in=1/2}",
    ),
}
"""By net: which channels a plan trains beside the last layer and 22 biases."""
Layer = Callable[[Net], Value]
LAYERS: dict[str, tuple[tuple[int, int, int], Layer]] = {
    "pointwise, 96 to 96 channels, 8 x 8": ((8, 8, 96), lambda net: net.conv(net.input, 96, 1)),
    "pointwise, 16 to 96 channels, 24 x 24": ((24, 24, 16), lambda net: net.conv(net.input, 96, 1)),
    "depthwise 3 x 3, 96 channels, 24 x 24": (
        (24, 24, 96), lambda net: net.conv(net.input, 96, 3, padding=1, groups=96),
    ),
    "3 x 3, 16 to 32 channels, 16 x 16": (
        (16, 16, 16), lambda net: net.conv(net.input, 32, 3, padding=1),
    ),
}  # fmt: skip
"""By name: the input, and the layer over it."""


@dataclass(frozen=True)
class Counted:
    """A step of a net on the board, op by op."""

    built: Build
    outcome: Outcome
    agrees: bool
    """Does the model end with the bits that it ends with here?"""

    def share(self, ops: slice) -> tuple[int, int]:
        """Instructions and multiply-adds of some ops."""
        graph = self.built.graph
        return sum(self.outcome.instructions[ops]), sum(
            macs(op, graph.tensors) for op in graph.ops[ops]
        )


def counted(elf: Path, net: Net, plan: str, dtype: str = "int8") -> Counted:
    """One step, batch 1, from initial values and ranges of 3."""
    built = passes(net, loss="cross_entropy", plan=plan, dtype=dtype, quantisable=True)
    program, draw = built.program, np.random.default_rng(0)
    vector = np.array(program.initial(0), np.float32)
    for p in program.range_parameters:
        vector[p.offset : p.offset + 2] = (0.0 if "relu" in p.name else -3.0), 3.0
    x = draw.uniform(-1, 1, (1, *program.sample_shape)).astype(np.float32)
    task = Task(program, vector, x, np.ones(1, np.int32), Hyper(0.01))
    outcome = emulated(elf, task)
    return Counted(built, outcome, outcome.vector == task.here())


def layers(elf: Path) -> Iterator[str]:
    """Instructions a multiply-add of single layers, forward."""
    yield "| layer | int8 | float32 |"
    yield "|---|---|---|"
    for name, (shape, layer) in LAYERS.items():
        figures = []
        for dtype in ("int8", "float32"):
            net = Net(shape)
            net.linear(net.global_avg_pool(layer(net)), 2)
            instructions, work = counted(elf, net, "last:1", dtype).share(slice(1))
            figures.append(f"{instructions / work:.2f}")
        yield f"| {name} | {' | '.join(figures)} |"


def nets(elf: Path) -> Iterator[str]:
    """Instructions, multiply-adds, and the one a piece of the other, of whole nets."""
    yield "| net and plan | forward | MAC | a MAC | step | MAC | a MAC | bits as here |"
    yield "|---|---|---|---|---|---|---|---|"
    yield PUBLISHED
    for name, (make, channels) in NETS.items():
        for plan in (PLAN, f"{PLAN}+named:{channels}"):
            for dtype in ("int8", "float32"):
                made = counted(elf, make(), plan, dtype)
                what = f"{name}, {dtype}, {plan.replace(channels, '4 slices')}"
                yield row(what, made)


def row(name: str, made: Counted) -> str:
    """A net's row."""
    figures = [made.share(slice(made.built.graph.n_forward)), made.share(slice(None))]
    cells = [f"{a / 1e6:.1f} M | {b / 1e6:.1f} M | {a / b:.2f}" for a, b in figures]
    return f"| {name} | {' | '.join(cells)} | {'yes' if made.agrees else 'NO'} |"


def main() -> None:
    """Print the tables."""
    if missing():
        sys.exit(f"needs {' and '.join(missing())}: {INSTALL}")
    with tempfile.TemporaryDirectory() as folder:
        elf = firmware(Path(folder))
        for table in (layers, nets):
            for line in table(elf):
                print(line, flush=True)
            print()


if __name__ == "__main__":
    main()

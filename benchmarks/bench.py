"""Device updates a second through `simulate`, beside the peers that are installed, in one run.

    python benchmarks/bench.py [seconds a row]

Workload S: 1-32-32-1, tanh, mean squared error; a device takes 32 steps on samples made on the fly.
Workload C: two convolutions (8 and 16 channels, stride 2) and 62 classes on 28 x 28 pictures; a
device takes ten steps of batch 10 on its hundred. Two threads. Peers run in processes of their own,
one after the other, between our rows. Then single training steps beside torch's, layers at several
densities, int8 beside float32, and what a microcontroller needs.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import budgets
import cortex_m4
import int8_steps
import sparse
import steps
from images import DEVICES, IMAGES, net
from kernels import flop_per_step, peak_flops

from fedtiny import Experiment
from fedtiny.engine.compile import compile
from fedtiny.engine.fleet_call import FleetCall
from fedtiny.simulator.simulation import Simulation

THREADS = 2
STEPS = 32
COHORT = 2000
PEERS = {
    "numpy, batched": ("numpy", "numpy", "S"),
    "torch, one device after another": ("torch-loop", "torch", "SC"),
    "torch, vmap over all devices": ("torch-vmap", "torch", "SC"),
    "JAX, vmap and scan over all devices": ("jax", "jax", "S"),
    "Flower (Ray)": ("flower", "flwr", "SC"),
}
"""By row: the name that peers.py knows, the module that it needs, its workloads."""


HARD = {"availability": "diurnal", "drop_out": 0.1}


def experiment(batch: int, **fleet: object) -> Experiment:
    """Workload S as an experiment, on a fleet of a hundred thousand."""
    return Experiment.of(
        {
            "seed": 1,
            "model": {"build": "sine_mlp", "activation": "tanh"},
            "data": {"source": "sine", "support": STEPS * batch},
            "device": {"ram": "256KiB", "batch": batch},
            "strategy": {"name": "fedavg", "cohort": COHORT, "beta": 0.01},
            "fleet": {"devices": 100_000, "held_out": 0, "threads": THREADS, **fleet},
            "run": {"rounds": 1_000_000, "over_selection": 1.3 if fleet else 1.0},
        }
    )


def images() -> Experiment:
    """Workload C as an experiment, on two hundred devices."""
    return Experiment.of(
        {
            "seed": 1,
            "model": {"build": "images:net"},
            "data": {"source": "images:task"},
            "device": {"ram": "1MiB", "batch": 10},
            "strategy": {"name": "fedavg", "cohort": DEVICES, "beta": 0.01},
            "fleet": {"devices": DEVICES, "held_out": 0, "threads": THREADS,
                      "profiles": {"pi-4": 1.0}},
            "run": {"rounds": 1_000_000},
        }
    )  # fmt: skip


class Stopwatch:
    """Time spent in the C calls."""

    def __init__(self) -> None:
        self.seconds = 0.0
        inner = FleetCall._call

        def timed(call: FleetCall, *arguments: int) -> object:
            started = time.perf_counter()
            result = inner(call, *arguments)
            self.seconds += time.perf_counter() - started
            return result

        FleetCall._call = timed  # type: ignore[method-assign,assignment]


def ours(asked: Experiment, seconds: float, watch: Stopwatch) -> tuple[float, float]:
    """Median updates a second over the rounds; microseconds a participant outside the C calls."""
    simulation = Simulation(asked, "columns", lambda row: None)
    simulation.step()
    cohort = DEVICES if asked.fleet.devices == DEVICES else COHORT
    rates, overheads = [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started, inside = time.perf_counter(), watch.seconds
        simulation.step()
        wall = time.perf_counter() - started
        rates.append(cohort / wall)
        overheads.append((wall - (watch.seconds - inside)) / cohort * 1e6)
    return median(rates), median(overheads)


def peer(name: str, workload: str, batch: int, seconds: float) -> str:
    """Updates a second of a peer, or why there is no figure."""
    script, module, workloads = PEERS[name]
    if workload not in workloads:
        return ""
    if importlib.util.find_spec(module) is None:
        return "not installed"
    command = [sys.executable, str(Path(__file__).with_name("peers.py")), script, workload]
    done = subprocess.run(
        [*command, str(batch), str(seconds)], capture_output=True, text=True, check=False
    )
    return f"{float(done.stdout):,.0f}" if done.returncode == 0 else done.stderr.strip()[-200:]


COLUMNS = (("S", 1), ("S", 10), ("C", 10))


def asked(workload: str, batch: int) -> Experiment:
    """The experiment of a column."""
    return images() if workload == "C" else experiment(batch)


def rows(seconds: float) -> Iterator[str]:
    """The table, row by row."""
    watch = Stopwatch()
    figures = [ours(asked(*column), seconds, watch) for column in COLUMNS]
    yield "| updates/s | S, batch 1 | S, batch 10 | C, batch 10 |"
    yield "| --- | ---: | ---: | ---: |"
    yield "| **fedtiny, `simulate`** | " + " | ".join(f"**{r:,.0f}**" for r, _ in figures) + " |"
    for name in PEERS:
        yield f"| {name} | " + " | ".join(peer(name, *c, seconds) for c in COLUMNS) + " |"
    again = [ours(asked(*column), seconds, watch) for column in COLUMNS]
    yield "| fedtiny, once more | " + " | ".join(f"{r:,.0f}" for r, _ in again) + " |"
    peak = peak_flops() * THREADS
    shares = [r * flop_per_visit(*c) / peak for (r, _), c in zip(figures, COLUMNS, strict=True)]
    yield "| share of the arithmetic peak | " + " | ".join(f"{s:.0%}" for s in shares) + " |"
    overheads = [f"{o:.2f} us" for _, o in figures]
    yield "| simulator, a participant beside the C call | " + " | ".join(overheads) + " |"
    hard = [ours(experiment(batch, **HARD), seconds, watch)[1] for batch in (1, 10)]
    cells = " | ".join(f"{overhead:.2f} us" for overhead in hard)
    yield f"| the same, diurnal, drop-out 0.1, over-selection 1.3 | {cells} | |"


def flop_per_visit(workload: str, batch: int) -> float:
    """Multiplications and additions that the layers of a visit need."""
    if workload == "C":
        program = compile(net(), loss="cross_entropy", ram="1MiB")
        return 2.0 * program.report()["macs_per_step"] * IMAGES
    return STEPS * batch * flop_per_step([1, 32, 32, 1], 1)


def processor() -> str:
    """The processor's name, as Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    print(f"{processor()}, {os.cpu_count()} cores, {THREADS} threads")
    print(f"Python {platform.python_version()}, median of the rounds of {seconds:g} s\n")
    for row in rows(seconds):
        print(row, flush=True)
    print("\nOne training step, batch 1, one core: microseconds\n")
    for row in steps.rows(seconds):
        print(row, flush=True)
    print("\nOne training step of a layer by its live weights, batch 32, one core\n")
    for row in sparse.rows():
        print(row, flush=True)
    print("\nint8 beside float32, the same plan, batch 1, one core: microseconds\n")
    for row in int8_steps.rows(60):
        print(row, flush=True)
    print("\nRAM of the whole device, 24 KiB for other firmware included\n")
    for row in budgets.rows():
        print(row, flush=True)
    print("\nInstructions of an emulated Cortex-M4, beside those of the published engine\n")
    if missing := cortex_m4.missing():
        print(f"not installed: {', '.join(missing)}; {cortex_m4.INSTALL}")
    else:
        cortex_m4.main()


if __name__ == "__main__":
    main()

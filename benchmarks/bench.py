"""Device updates a second through `simulate`, beside the peers that are installed, in one run.

    python benchmarks/bench.py [seconds a row]

Workload S: 1-32-32-1, tanh, mean squared error; a device takes 32 steps on samples made on the fly.
Two threads. Peers run in processes of their own, one after the other, between our rows.
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

from kernels import flop_per_step, peak_flops

from fedtiny import Experiment
from fedtiny.engine.fleet_call import FleetCall
from fedtiny.simulator.simulation import Simulation

THREADS = 2
STEPS = 32
COHORT = 2000
PEERS = {
    "numpy, batched": ("numpy", "numpy"),
    "torch, one device after another": ("torch-loop", "torch"),
    "torch, vmap over 1,000 devices": ("torch-vmap", "torch"),
    "JAX, vmap and scan over 1,000 devices": ("jax", "jax"),
    "Flower (Ray)": ("flower", "flwr"),
}


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


def ours(batch: int, seconds: float, watch: Stopwatch, **fleet: object) -> tuple[float, float]:
    """Median updates a second over the rounds; microseconds a participant outside the C calls."""
    simulation = Simulation(experiment(batch, **fleet), "columns", lambda row: None)
    simulation.step()
    rates, overheads = [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started, inside = time.perf_counter(), watch.seconds
        simulation.step()
        wall = time.perf_counter() - started
        rates.append(COHORT / wall)
        overheads.append((wall - (watch.seconds - inside)) / COHORT * 1e6)
    return median(rates), median(overheads)


def peer(name: str, batch: int, seconds: float) -> str:
    """Updates a second of a peer, or why there is no figure."""
    script, module = PEERS[name]
    if importlib.util.find_spec(module) is None:
        return "not installed"
    command = [sys.executable, str(Path(__file__).with_name("peers.py")), script, str(batch)]
    done = subprocess.run([*command, str(seconds)], capture_output=True, text=True, check=False)
    return f"{float(done.stdout):,.0f}" if done.returncode == 0 else done.stderr.strip()[-200:]


def rows(seconds: float) -> Iterator[str]:
    """The table, row by row."""
    watch = Stopwatch()
    peak = peak_flops() * THREADS
    batches = (1, 10)
    figures = [ours(batch, seconds, watch) for batch in batches]
    yield "| updates/s, workload S | batch 1 | batch 10 |"
    yield "| --- | ---: | ---: |"
    yield "| **fedtiny, `simulate`** | " + " | ".join(f"**{r:,.0f}**" for r, _ in figures) + " |"
    for name in PEERS:
        yield f"| {name} | " + " | ".join(peer(name, b, seconds) for b in batches) + " |"
    again = [ours(batch, seconds, watch) for batch in batches]
    yield "| fedtiny, once more | " + " | ".join(f"{r:,.0f}" for r, _ in again) + " |"
    work = flop_per_step([1, 32, 32, 1], 1)
    shares = [r * STEPS * b * work / peak for (r, _), b in zip(figures, batches, strict=True)]
    yield "| share of the arithmetic peak | " + " | ".join(f"{s:.0%}" for s in shares) + " |"
    overheads = [f"{o:.2f} us" for _, o in figures]
    yield "| simulator, a participant beside the C call | " + " | ".join(overheads) + " |"
    hard = [ours(batch, seconds, watch, **HARD)[1] for batch in batches]
    cells = " | ".join(f"{overhead:.2f} us" for overhead in hard)
    yield f"| the same, diurnal, drop-out 0.1, over-selection 1.3 | {cells} |"


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


if __name__ == "__main__":
    main()

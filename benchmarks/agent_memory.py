"""Memory of an agent after 20 visits over TLS to a coordinator in another process.

    python benchmarks/agent_memory.py [--visits 20] [--json]

RSS of the agent's process as the kernel tells it, without NumPy (its import is blocked) and with.
The model is the 1-32-32-1 net of the sine task: 1,153 parameters, 4.6 KB.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = """\
seed = 7
seeded = true
[model]
build = "sine_mlp"
[data]
source = "sine"
support = 16
query = 4
[device]
ram = "64KiB"
[strategy]
name = "fedavg"
cohort = 1
[fleet]
devices = 1
[run]
rounds = {visits}
"""

AGENT = """
import sys
if {blocked}:
    sys.modules["numpy"] = None
from fedtiny.agent.cli import main
code = main(["run", "--dir", sys.argv[1], "--data", sys.argv[2]])
found = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(*(int(found[name].split()[0]) for name in ("VmRSS", "VmHWM")))
raise SystemExit(code)
"""


@contextmanager
def coordinator(folder: Path, visits: int) -> Iterator[str]:
    """A coordinator in a process of its own, and a join string of it."""
    experiment = folder / "experiment.toml"
    experiment.write_text(EXPERIMENT.format(visits=visits))
    home = folder / "fleet"
    fedtiny = str(Path(sys.executable).with_name("fedtiny"))
    serve = [fedtiny, "coordinator", str(experiment), "--dir", str(home)]
    addresses = ["--listen", "127.0.0.1:0", "--enrol", "127.0.0.1:0"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([*serve, *addresses], stdout=quiet, stderr=quiet)
    try:
        yield _join_string(process, [fedtiny, "token", "create", "--dir", str(home)])
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _join_string(coordinator: subprocess.Popen[bytes], command: list[str]) -> str:
    while coordinator.poll() is None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
        time.sleep(0.1)
    raise SystemExit(f"the coordinator ended with {coordinator.returncode}")


def rss_mb(visits: int, numpy: bool) -> tuple[float, float]:
    """RSS at the end and at its highest (MB, 10^6 B) of an agent that made so many visits."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = "".join(f"{n / 8 - 1},{n % 3 - 1.5}\n" for n in range(20))
        (folder / "data.csv").write_text("x,label\n" + rows)
        agent, home = [sys.executable, "-m", "fedtiny.agent"], str(folder / "agent")
        with coordinator(folder, visits) as string:
            subprocess.run([*agent, "join", string, "--dir", home], check=True, capture_output=True)
            code = AGENT.format(blocked=not numpy)
            done = subprocess.run(
                [sys.executable, "-c", code, home, str(folder / "data.csv")],
                env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
    if done.returncode or done.stderr.count("trained") != visits:
        raise SystemExit(f"the agent ended with {done.returncode}:\n{done.stderr}")
    end_kib, most_kib = map(int, done.stdout.split())
    return end_kib * 1024 / 1e6, most_kib * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visits", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kinds = ("without numpy", "with numpy")
    with ThreadPoolExecutor() as pool:  # most of a visit is waiting
        weighed = pool.map(rss_mb, (options.visits,) * 2, (False, True))
        found = {
            kind: dict(zip(("rss_mb", "peak_mb"), figures, strict=True))
            for kind, figures in zip(kinds, weighed, strict=True)
        }
    if options.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        print(f"{name:14} {figures['rss_mb']:5.1f} MB, at most {figures['peak_mb']:.1f} MB")


if __name__ == "__main__":
    main()

"""What an agent weighs: in memory after twenty visits over TLS, and what it does not even load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_an_agent_stays_small_over_twenty_visits_with_tls() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/agent_memory.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=150)
    found = json.loads(done.stdout)
    assert found["without numpy"]["peak_mb"] <= 50
    assert found["with numpy"]["peak_mb"] <= 72


def test_an_agent_loads_only_what_it_needs() -> None:
    code = "import sys, fedtiny.agent.cli, fedtiny.agent.starting, fedtiny.agent.serving\n"
    command = [sys.executable, "-c", code + "print(*sys.modules)"]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    heavy = {"numpy", "torch", "ray", "flwr", "cryptography", "sqlite3", "email", "rich"}
    rooms = {f"fedtiny.{room}" for room in ("experiment", "strategies", "rounds", "runs", "server")}
    assert (heavy | rooms).isdisjoint(loaded.split())

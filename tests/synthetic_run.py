"""Run folders without a run: a history whose figures the tests know."""

import math
from pathlib import Path
from typing import Any

import numpy as np

import fedtiny
from fedtiny.engine.program import Program
from fedtiny.engine.zoo import digits_mlp, sine_mlp
from fedtiny.experiment import Experiment
from fedtiny.runs import RunFolder

SINE = """\
seed = 7

[model]
build = "sine_mlp"

[data]
source = "sine"  # <amplitude> & phase differ
sample_period = "0.1s"

[device]
ram = "64KiB"
reserve = "4KiB"

[device.pi-4]
ram = "64MiB"

[strategy]
name = "tinyreptile"
alpha = 1.0
beta = 0.02
cohort = 10

[fleet]
devices = 1000
held_out = 100
profiles = { cortex-m4 = 0.7, pi-4 = 0.2, thimble = 0.1 }

[device.thimble]
like = "cortex-m4"
ram = "4KiB"

[run]
rounds = {rounds}

[evaluate.stream]
lr = 0.02

[evaluate.eight]
lr = 0.02
support = 8
steps = 8
"""
DIGITS = SINE.replace('"sine_mlp"', '"digits_mlp"').replace('"sine"', '"few-shot-digits"')

REASON = "thimble: needs 10,132 B of 4,096 B RAM; train fewer layers or lower the batch"


def program(classes: bool = False) -> Program:
    """The Program of the synthetic runs."""
    net, loss = (digits_mlp(5), "cross_entropy") if classes else (sine_mlp(), "mse")
    return fedtiny.compile(net, loss=loss, ram="1MiB", reserve="4KiB")


def synthetic_run(
    path: Path, rounds: int = 40, every: int = 10, classes: bool = False, ended: bool = True
) -> RunFolder:
    """A folder of 10 leases a round, of which 8 are accepted, 1 is refused, 1 never answers."""
    text = (DIGITS if classes else SINE).replace("{rounds}", str(rounds))
    run = RunFolder.create(path, Experiment.parse(text))
    rows = [row for done in range(rounds + 1) for row in _rows(done, rounds, every, classes)]
    for row in rows if ended else rows[: len(rows) // 2]:
        run.append(row)
    run.save_model(rounds, program(classes).layout.unflatten(program(classes).initial(7)))
    if ended:
        run.save_summary(_summary(rounds, rows, classes))
    return run


def _rows(done: int, rounds: int, every: int, classes: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if done:
        rows.append(
            {
                "kind": "round", "round": done - 1, "time_s": 30.0 * done, "version": done,
                "leases": 10, "accepted": 8, "refused": 1, "failed": False,
                "loss": 4 * math.exp(-4 * done / rounds) + 0.3 + 0.2 * math.sin(done * done),
                "bytes_down": 46120, "bytes_up": 36896, "energy_j": 0.25,
            }
        )  # fmt: skip
    if done % every == 0:
        rows += [_evaluation(done, rounds, name, classes) for name in ("stream", "eight")]
    return rows


def _evaluation(done: int, rounds: int, name: str, classes: bool) -> dict[str, Any]:
    fallen = math.exp(-5 * done / max(rounds, 1)) * (1 if name == "stream" else 1.6)
    row = {
        "kind": "evaluation", "round": done, "time_s": 30.0 * done, "name": name, "devices": 100,
        "loss_before": 3.5 + 0.5 * fallen, "loss_before_ci": 0.4,
        "loss_after": 0.15 + 3 * fallen, "loss_after_ci": 0.06 + 0.3 * fallen,
    }  # fmt: skip
    if classes:
        row |= {"accuracy_before": 0.2, "accuracy_before_ci": 0.02}
        row |= {"accuracy_after": 0.9 - 0.3 * fallen, "accuracy_after_ci": 0.015}
    return row


def _summary(rounds: int, rows: list[dict[str, Any]], classes: bool) -> dict[str, Any]:
    report = program(classes).report()
    profiles = [
        {"name": "cortex-m4", "devices": 700, "reasons": [], "ram_given_bytes": 65536},
        {"name": "pi-4", "devices": 200, "reasons": [], "ram_given_bytes": 64 * 2**20},
        {"name": "thimble", "devices": 100, "reasons": [REASON], "ram_given_bytes": 4096},
    ]
    return {
        "rounds": rounds, "failed_rounds": 0, "time_s": 30.0 * rounds, "updates": 8 * rounds,
        "refused": rounds, "bytes_down": 46120 * rounds, "bytes_up": 36896 * rounds,
        "energy_j": 0.25 * rounds, "devices": 1000, "unfit_devices": 100,
        "profiles": [{**p, "report": report} for p in profiles],
        "evaluations": {row["name"]: row for row in rows if row["kind"] == "evaluation"},
        "model_digest": np.zeros(4, np.uint8).tobytes().hex() * 8,
    }  # fmt: skip

"""Large nets that learn new classes in 256 KiB: a sparse int8 plan beside the head alone.

python benchmarks/adaptation.py mobilenet_v2|mcunet [SEEDS] [RAM]

Needs torch, FEDTINY_DATA and what pretrain.py wrote. A net that knows seven classes of CIFAR-10
learns the other three from pictures that it meets one by one, 300 of each class, four times; it is
judged on all 600 new ones. A seed draws the pictures, their order and the head. The ranges of
activations come from 60 pictures that no device trains on.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from pretrain import FOLDER, KNOWN, NETS, enlarged, pictures
from torch import nn

from fedtiny.device.learner import Key, Learner
from fedtiny.engine.calibration import calibrated
from fedtiny.engine.compile import build, net_of
from fedtiny.engine.program import ram_parts
from fedtiny.errors import BudgetError
from fedtiny.values import parse_bytes

HELD_OUT = range(len(KNOWN), 10)
EACH, PASSES, PUBLIC, LR = 300, 4, 60, 0.02
OPTIONS = {"loss": "cross_entropy", "reserve": "24KiB"}
HEAD = "last:1"
SHARES = {"mobilenet_v2": "1/2", "mcunet": "1/4"}


def rows(x: torch.Tensor, side: int) -> Any:
    """As a device stores them, flat: [n, side x side x 3]."""
    return enlarged(x, side).permute(0, 2, 3, 1).reshape(len(x), -1).numpy()


def pretrained(name: str, seed: int) -> Any:
    """The module with a new head, and its net without norms."""
    make, side = NETS[name]
    module = make(len(KNOWN))
    with np.load(FOLDER / f"{name}.npz") as arrays:
        module.load_state_dict({key: torch.from_numpy(arrays[key]) for key in arrays})
    torch.manual_seed(seed)
    module[-1] = nn.Linear(module[-1].in_features, len(HELD_OUT))
    return net_of(module.eval(), torch.zeros(1, 3, side, side), fold=True)


def split(side: int) -> tuple[Any, Any, Any]:
    """Of the held-out classes: public pictures, those that devices can have, and new ones."""
    x, y = pictures(False, HELD_OUT)
    order = np.random.default_rng(0).permutation(len(y))
    public, rest = order[:PUBLIC], order[PUBLIC:]
    new = pictures(True, HELD_OUT)
    return (rows(x[public], side), y[public].numpy()), (x[rest], y[rest]), (
        rows(new[0], side), new[1].numpy(),
    )  # fmt: skip


def own(pool: Any, side: int, seed: int) -> tuple[Any, Any]:
    """What the device of a seed has: so many of each class."""
    x, y = pool
    order = np.random.default_rng(seed).permutation(len(y))
    chosen = np.concatenate([order[y.numpy()[order] == k][:EACH] for k in range(len(HELD_OUT))])
    return rows(x[chosen], side), y[chosen].numpy()


def start(net: Any, public: Any) -> Any:
    """The net's values, with ranges."""
    program = build(net, plan="last:1", quantisable=True, **OPTIONS).program
    return calibrated(net, np.asarray(program.initial(0)), public[0], loss=OPTIONS["loss"])


def sparse_plan(net: Any, share: str) -> str:
    """The head, 22 biases, and a share of the inputs of six convolutions that widen a block."""
    shapes = {p.name: p.shape for p in net.graph(1).layout.parameters}
    wide = [
        name for name, shape in shapes.items()
        if name.endswith("body.0.weight") and shape[:2] == (1, 1)
    ]  # fmt: skip
    slices = ",".join(f"{name}{{in={share}}}" for name in wide[-6:])
    return f"biases:22+last:1+named:{slices}"


def adapted(net: Any, vector: Any, plan: str, mine: Any, new: Any, seed: int) -> float:
    """The share of the new pictures that it names afterwards."""
    built = build(net, plan=plan, dtype="int8", patches="auto", **OPTIONS)
    learner = Learner(built.program)
    learner.load(vector)
    learner.train(*mine, LR, PASSES * len(mine[1]), shuffle=True, key=Key(seed))
    found = learner.evaluate(*new)
    return float(found["correct"] / found["count"])


def refused(net: Any, ram: str) -> str:
    """What full training in float32 is told."""
    try:
        build(net, **OPTIONS).check(parse_bytes(ram), parse_bytes("1MiB"))
    except BudgetError as error:
        return str(error)
    return "it fits"


def figures(net: Any, plan: str) -> str:
    """What it needs."""
    report = build(net, plan=plan, dtype="int8", patches="auto", **OPTIONS).program.report()
    parts = ", ".join(f"{part} {nbytes:,}" for part, nbytes in ram_parts(report).items())
    flash, macs = report["flash_bytes"], report["macs_per_step"]
    return f"{report['ram_bytes']:,} B RAM ({parts}), {flash:,} B flash, {macs:,} MAC a step"


def main(name: str, seeds: int, ram: str) -> None:
    """Prints the bytes, a row a seed, and the mean difference with its interval."""
    side = NETS[name][1]
    public, pool, new = split(side)
    net = pretrained(name, 0)
    plan = sparse_plan(net, SHARES[name])
    print(f"float32, everything: {refused(net, ram)}")
    for told in (HEAD, plan):
        print(f"{name} at {side}, int8, {told}: {figures(net, told)}")
    differences = []
    for seed in range(1, seeds + 1):
        net = pretrained(name, seed)
        vector, mine = start(net, public), own(pool, side, seed)
        head, sparse = (adapted(net, vector, p, mine, new, seed) for p in (HEAD, plan))
        differences.append(sparse - head)
        print(f"seed {seed}: head {head:.4f}, sparse {sparse:.4f}", flush=True)
    mean, error = np.mean(differences), np.std(differences, ddof=1) / len(differences) ** 0.5
    print(f"difference {100 * mean:.1f} +- {196 * error:.1f} points")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 5, (sys.argv[3:] or ["256KiB"])[0])

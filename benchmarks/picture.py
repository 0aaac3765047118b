"""The picture of the README: what a device makes of eight samples.

python benchmarks/picture.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("svg")
from matplotlib import pyplot as plt

from fedtiny import Experiment, Learner, Result, Sgd, compile, simulate
from fedtiny.data.tasks import SineTask
from fedtiny.engine.zoo import sine_mlp
from fedtiny.values import SUPPORT

FOLDER = Path(__file__).parent.parent
DEVICE, SEED = 10_017, 1
STARTS = {
    "sine_none": "a random start",
    "sine_joint": "joint training",
    "sine_tinyreptile": "TinyReptile",
}
INK, GREY, BLUE, ORANGE = "#222222", "#9a9a9a", "#0072b2", "#d55e00"


def draw(axes: plt.Axes, title: str, result: Result) -> None:
    """One device: its function, its samples, the net before and after eight steps on them."""
    program = compile(sine_mlp(), loss="mse", ram="256KiB", batch=8, sgd=Sgd(clip=10.0))
    learner = Learner(program)
    learner.load(result.model)
    x, y = SineTask(support=8).samples(SEED, 0, DEVICE, SUPPORT)
    grid = np.linspace(-5, 5, 200, dtype=np.float32)
    before = learner.predict(grid)
    learner.train(x, y, lr=0.02, steps=8)
    truth = SineTask(support=2000).samples(SEED, 0, DEVICE, SUPPORT)
    order = np.argsort(truth[0][:, 0])
    axes.plot(truth[0][order, 0], truth[1][order, 0], color=GREY, lw=4, alpha=0.5, label="truth")
    axes.plot(grid, before, color=BLUE, lw=1.3, ls=":", label="before")
    axes.plot(grid, learner.predict(grid), color=ORANGE, lw=2, label="after 8 steps")
    axes.plot(x[:, 0], y[:, 0], "o", color=INK, ms=4, label="8 samples")
    after = result.summary["evaluations"]["few"]["loss_after"]
    axes.set_title(f"from {title}\nsquared error, 200 devices: {after:.2f}", fontsize=10, color=INK)


def main() -> None:
    mpl.rcParams["svg.hashsalt"] = "fedtiny"
    figure, all_axes = plt.subplots(1, 3, figsize=(9.5, 2.9), sharey=True, layout="constrained")
    for axes, (name, title) in zip(all_axes, STARTS.items(), strict=True):
        experiment = Experiment.load(FOLDER / "simulations" / f"{name}.toml")
        draw(axes, title, simulate(experiment.override(f"seed={SEED}")))
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("x")
    all_axes[0].legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    all_axes[0].set_ylim(-6, 8)
    (FOLDER / "docs").mkdir(exist_ok=True)
    figure.savefig(FOLDER / "docs" / "eight-samples.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

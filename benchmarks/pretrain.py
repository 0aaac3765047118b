"""Trains a large net of the zoo on seven classes of CIFAR-10, for adaptation.py.

python benchmarks/pretrain.py mobilenet_v2|mcunet [EPOCHS]

Needs torch and FEDTINY_DATA; writes build/pretrained/NET.npz: the arrays of the module, by name.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch_nets
from torch import nn
from torch.nn import functional

from fedtiny.data.files import DATA_SETS

FOLDER = Path("build/pretrained")
KNOWN = range(7)
"""The classes that a net is trained on; the others are held out."""
NETS = {"mobilenet_v2": (torch_nets.mobilenet_v2, 96), "mcunet": (torch_nets.mcunet, 128)}
"""How each is made, and the side of its pictures."""
BATCH, LR, DECAY, SMOOTHING = 64, 0.1, 1e-4, 0.1
SMALL_SIDE, SMALL_SHARE = 64, 0.75
"""Most epochs see smaller pictures, which takes a quarter to a half of the time."""


def pictures(test: bool, classes: range) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, 3, 32, 32] from -1 to 1, and labels from 0 on."""
    data = DATA_SETS["cifar10"].load()
    chosen = np.flatnonzero((data.split == test) & np.isin(data.label, classes))
    x = torch.from_numpy(data.x[chosen].reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2) * 2 - 1)
    return x, torch.from_numpy(data.label[chosen].astype(np.int64) - classes.start)


def enlarged(x: torch.Tensor, side: int) -> torch.Tensor:
    """Each pixel becomes a square."""
    return x.repeat_interleave(side // 32, 2).repeat_interleave(side // 32, 3)


def _varied(x: torch.Tensor) -> torch.Tensor:
    """Moved by up to four pixels, and every other one mirrored."""
    down, right = torch.randint(0, 9, (2,)).tolist()
    moved = functional.pad(x, (4, 4, 4, 4))[:, :, down : down + 32, right : right + 32]
    mirrored = torch.rand(len(x), 1, 1, 1) < 0.5
    return torch.where(mirrored, moved.flip(3), moved)


def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor, side: int) -> float:
    """The share of the pictures that it names."""
    net.eval()
    with torch.no_grad():
        right = [
            (net(enlarged(rows, side)).argmax(1) == labels).sum().item()
            for rows, labels in zip(x.split(200), y.split(200), strict=True)
        ]
    return sum(right) / len(y)


def train(name: str, epochs: int) -> None:
    """Prints a line an epoch, and writes the net after the last."""
    make, side = NETS[name]
    torch.manual_seed(0)
    net, (x, y), started = make(len(KNOWN)), pictures(False, KNOWN), time.perf_counter()
    net = net.to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(net.parameters(), LR, 0.9, weight_decay=DECAY, nesterov=True)
    steps = epochs * (len(x) // BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(sgd, LR, total_steps=steps, pct_start=0.15)
    for epoch in range(epochs):
        net.train()
        shown = SMALL_SIDE if epoch < SMALL_SHARE * epochs else side
        for rows in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            inputs = enlarged(_varied(x[rows]), shown).to(memory_format=torch.channels_last)
            loss = functional.cross_entropy(net(inputs), y[rows], label_smoothing=SMOOTHING)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            rate.step()
        told = f"epoch {epoch + 1} of {epochs}, loss {loss.item():.3f}"
        print(f"{told}, {time.perf_counter() - started:.0f} s", flush=True)
    print(f"{name}: accuracy {accuracy(net, *pictures(True, KNOWN), side):.4f} on new pictures")
    FOLDER.mkdir(parents=True, exist_ok=True)
    arrays = {key: value.numpy() for key, value in net.state_dict().items()}
    np.savez(FOLDER / f"{name}.npz", **arrays)


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 24)

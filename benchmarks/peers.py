"""Workloads S and C in other systems: prints updates a second.

python benchmarks/peers.py numpy|torch-loop|torch-vmap|jax|flower S|C BATCH SECONDS
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

STEPS, LR, DEVICES = 32, 0.01, 1000
SHAPES = ((1, 32), (32,), (32, 32), (32,), (32, 1), (1,))
SIDE, CLASSES, IMAGES = 28, 62, 100


def samples(device: int, batch: int) -> tuple[Any, Any]:
    """x, y of [STEPS, batch, 1]."""
    rng = np.random.default_rng(device)
    amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0, 2 * np.pi)
    x = rng.uniform(-5, 5, (STEPS, batch, 1)).astype(np.float32)
    return x, (amplitude * np.sin(x + phase)).astype(np.float32)


def images(device: int, batch: int) -> tuple[Any, Any]:
    """x of [steps, batch, 1, 28, 28], labels of [steps, batch]; 50 devices' data, in turn."""
    rng = np.random.default_rng(device % 50)
    x = rng.random((IMAGES // batch, batch, 1, SIDE, SIDE), dtype=np.float32)
    return x, rng.integers(0, CLASSES, x.shape[:2])


def initial() -> list[Any]:
    """Uniform within the bound of the fan-in; biases zero."""
    rng = np.random.default_rng(0)
    return [
        rng.uniform(-1, 1, s).astype(np.float32) / np.float32(s[0] ** 0.5)
        if len(s) > 1 else np.zeros(s, np.float32)
        for s in SHAPES
    ]  # fmt: skip


def rate(round: Callable[[], int], seconds: float) -> float:
    """Updates a second of a function that makes some and says how many."""
    round()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        count += round()
    return count / (time.perf_counter() - started)


@dataclass(frozen=True)
class Workload:
    """A net in torch, its loss, and what a device trains on."""

    net: Callable[[], Any]
    loss: str
    samples: Callable[[int, int], tuple[Any, Any]]
    devices: int  # trained at once, where that is possible

    def stacked(self, batch: int) -> tuple[Any, Any]:
        """The samples of all devices: [steps, devices, batch, ...]."""
        pairs = [self.samples(device, batch) for device in range(self.devices)]
        return np.stack([x for x, _ in pairs], 1), np.stack([y for _, y in pairs], 1)

    def error(self, prediction: Any, y: Any) -> Any:
        """The loss of a batch, in torch."""
        import torch

        return getattr(torch.nn.functional, self.loss)(prediction, y)


def numpy_batched(work: Workload, batch: int) -> Callable[[], int]:
    """Every device at once by stacked matrix products; samples made before. Workload S."""
    xs, ys = work.stacked(batch)

    def turned(a: Any) -> Any:
        return a.transpose(0, 2, 1)

    def round() -> int:
        w1, b1, w2, b2, w3, b3 = (np.repeat(p[None], DEVICES, 0) for p in initial())
        for x, y in zip(xs, ys, strict=True):
            h1 = np.tanh(x @ w1 + b1[:, None])
            h2 = np.tanh(h1 @ w2 + b2[:, None])
            e = (h2 @ w3 + b3[:, None] - y) * np.float32(2 / batch)
            g2 = (e @ turned(w3)) * (1 - h2 * h2)
            g1 = (g2 @ turned(w2)) * (1 - h1 * h1)
            for w, g in ((w1, turned(x) @ g1), (w2, turned(h1) @ g2), (w3, turned(h2) @ e)):
                w -= np.float32(LR) * g
            for b, g in ((b1, g1), (b2, g2), (b3, e)):
                b -= np.float32(LR) * g.sum(1)
        w1.mean(0)
        return DEVICES

    return round


def sine_net() -> Any:
    import torch

    layers = torch.nn.Linear(1, 32), torch.nn.Linear(32, 32), torch.nn.Linear(32, 1)
    return torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2])


def image_net() -> Any:
    from torch import nn

    convolutions = nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU()
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16 * 6 * 6, CLASSES))


WORKLOADS = {
    "S": Workload(sine_net, "mse_loss", samples, DEVICES),
    "C": Workload(image_net, "cross_entropy", images, 100),
}


def torch_loop(work: Workload, batch: int) -> Callable[[], int]:
    """One device after another, as a client program does it."""
    import torch

    net, device = work.net(), iter(range(10**9))
    state = {name: p.detach().clone() for name, p in net.state_dict().items()}

    def round() -> int:
        net.load_state_dict(state)
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        xs, ys = (torch.from_numpy(a) for a in work.samples(next(device), batch))
        for x, y in zip(xs, ys, strict=True):
            optimizer.zero_grad(set_to_none=True)
            work.error(net(x), y).backward()
            optimizer.step()
        return 1

    return round


def torch_vmap(work: Workload, batch: int) -> Callable[[], int]:
    """`torch.func`: vmap over devices, grad inside; samples made before."""
    import torch
    from torch.func import functional_call, grad, vmap

    net = work.net()
    xs, ys = (torch.from_numpy(a) for a in work.stacked(batch))

    def loss(params: Any, x: Any, y: Any) -> Any:
        return work.error(functional_call(net, params, (x,)), y)

    gradient = vmap(grad(loss))

    def round() -> int:
        params = {
            n: p.detach().expand(work.devices, *p.shape).clone() for n, p in net.named_parameters()
        }
        with torch.no_grad():
            for x, y in zip(xs, ys, strict=True):
                for name, g in gradient(params, x, y).items():
                    params[name].sub_(LR * g)
        return work.devices

    return round


def jax_scan(work: Workload, batch: int) -> Callable[[], int]:
    """Compiled: vmap over devices, scan over steps; samples made before. Workload S."""
    import jax
    import jax.numpy as jnp

    xs, ys = (jnp.asarray(a.transpose(1, 0, 2, 3)) for a in work.stacked(batch))

    def loss(p: Any, x: Any, y: Any) -> Any:
        h = jnp.tanh(jnp.tanh(x @ p[0] + p[1]) @ p[2] + p[3])
        return ((h @ p[4] + p[5] - y) ** 2).mean()

    def visit(p: Any, x: Any, y: Any) -> Any:
        def step(q: Any, pair: Any) -> Any:
            return [a - LR * g for a, g in zip(q, jax.grad(loss)(q, *pair), strict=True)], None

        return jax.lax.scan(step, p, (x, y))[0]

    cohort = jax.jit(lambda p: [a.mean(0) for a in jax.vmap(visit, (None, 0, 0))(p, xs, ys)])
    params = [jnp.asarray(a) for a in initial()]

    def round() -> int:
        jax.block_until_ready(cohort(params))
        return DEVICES

    return round


def flower(work: Workload, batch: int, rounds: int = 4, cohort: int = 100) -> float:
    """Flower's simulation on Ray, 100 of 1,000 clients a round; updates a second of its rounds."""
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    import torch
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    logging.disable(logging.CRITICAL)
    client, server, ends = ClientApp(), ServerApp(), []

    @client.train()  # type: ignore[misc]
    def train(message: Message, context: Any) -> Message:
        torch.set_num_threads(1)
        net = work.net()
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        mine = work.samples(context.node_config["partition-id"], batch)
        for x, y in zip(*map(torch.from_numpy, mine), strict=True):
            optimizer.zero_grad(set_to_none=True)
            work.error(net(x), y).backward()
            optimizer.step()
        content = {
            "arrays": ArrayRecord(net.state_dict()),
            "metrics": MetricRecord({"num-examples": len(mine[0]) * batch}),
        }
        return Message(content=RecordDict(content), reply_to=message)

    @server.main()  # type: ignore[misc]
    def main(grid: Any, context: Any) -> None:
        strategy = FedAvg(fraction_train=cohort / DEVICES, fraction_evaluate=0.0)
        initial = ArrayRecord(work.net().state_dict())

        def mark(round: int, arrays: Any) -> None:
            ends.append(time.perf_counter())

        strategy.start(grid, initial, num_rounds=rounds, evaluate_fn=mark)

    resources = {"client_resources": {"num_cpus": 0.5, "num_gpus": 0.0}}
    run_simulation(server, client, DEVICES, backend_config=resources)
    return (rounds - 1) * cohort / (ends[-1] - ends[1])  # the first round starts Ray


PEERS = {
    "numpy": numpy_batched,
    "torch-loop": torch_loop,
    "torch-vmap": torch_vmap,
    "jax": jax_scan,
}


def main() -> None:
    name, work = sys.argv[1], WORKLOADS[sys.argv[2]]
    batch, seconds = int(sys.argv[3]), float(sys.argv[4])
    found = flower(work, batch) if name == "flower" else rate(PEERS[name](work, batch), seconds)
    print(found)


if __name__ == "__main__":
    main()

"""A second opinion on forward graphs: torch's own functions and its autograd, in float64.

The graph's images are turned to torch's channels first around every function that wants it so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedtiny.engine.ir import Graph, Op, Scalars, Window
from fedtiny.engine.program import Program
from fedtiny.values import Sgd
from tests.engine.nets import Array

torch.set_num_threads(1)  # a second one costs more than it gives for tensors this small
Function = Callable[..., Tensor]


def _first(x: Tensor) -> Tensor:
    """[B,H,W,C], or with fewer axes, as [B,C,H,W]."""
    return x.view(x.shape[0], *[1] * (4 - x.dim()), *x.shape[1:]).permute(0, 3, 1, 2)


def _last(y: Tensor, axes: int) -> Tensor:
    """[B,C,H,W] as [B,H,W,C] with that many axes."""
    y = y.permute(0, 2, 3, 1)
    return y.reshape(y.shape[0], *y.shape[5 - axes :])


def _padded(x: Tensor, window: Window, value: float = 0.0) -> Tensor:
    top, left, bottom, right = window.padding
    return F.pad(_first(x), (left, right, top, bottom), value=value)


def _conv(window: Window, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    kernel = w.view(*[1] * (4 - w.dim()), *w.shape).permute(3, 2, 0, 1).contiguous()
    y = F.conv2d(_padded(x, window), kernel, b, window.stride, groups=window.groups)
    return _last(y, x.dim())


def _max_pool(window: Window, x: Tensor) -> Tensor:
    y = F.max_pool2d(_padded(x, window, -np.inf), window.kernel, window.stride)
    return _last(y, x.dim())


def _avg_pool(window: Window, x: Tensor) -> Tensor:
    return _last(F.avg_pool2d(_padded(x, window), window.kernel, window.stride), x.dim())


def _conv_pool(window: Window, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    y = _conv(window, x, w, b)
    return _max_pool(Window(stride=window.kernel, kernel=window.kernel), y)


def _linear(_: None, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return F.linear(x.flatten(1), w.T, b)


def _batch_normalize(eps: Scalars, x: Tensor) -> Tensor:
    return _last(F.batch_norm(_first(x), None, None, training=True, eps=eps.value), x.dim())


def _tracked_normalize(scalars: Scalars, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    momentum = scalars.number / 1000
    return _last(
        F.batch_norm(_first(x), mean, var, None, None, True, momentum, scalars.value), x.dim()
    )


def _sparse_conv(window: Window, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return _linear(None, x, w, b) if w.dim() == 2 else _conv(window, x, w, b)


def _frozen_normalize(eps: Scalars, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return _last(F.batch_norm(_first(x), mean, var, eps=eps.value), x.dim())


def _group_normalize(scalars: Scalars, x: Tensor) -> Tensor:
    return _last(F.group_norm(_first(x), scalars.number, eps=scalars.value), x.dim())


FUNCTIONS: dict[str, Function] = {
    "linear": _linear,
    "bias": lambda _, x, b: x + b,
    "relu": lambda _, x: F.relu(x),
    "relu6": lambda _, x: F.relu6(x),
    "leaky_relu": lambda slope, x: F.leaky_relu(x, slope.value),
    "tanh": lambda _, x: torch.tanh(x),
    "sigmoid": lambda _, x: torch.sigmoid(x),
    "hardswish": lambda _, x: F.hardswish(x),
    "softmax": lambda _, x: F.softmax(x, -1),
    "add": lambda _, a, b: a + b,
    "concat": lambda _, a, b: torch.cat([a, b], -1),
    "conv": _conv,
    "conv_pool": _conv_pool,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "affine": lambda _, x, g, b: x * g + b,
    "batch_normalize": _batch_normalize,
    "group_normalize": _group_normalize,
    "frozen_normalize": _frozen_normalize,
    "sparse_conv": _sparse_conv,
    "tracked_normalize": _tracked_normalize,
}


def output_of(graph: Graph, values: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What the forward ops compute."""
    known = {**values, graph.input: x}
    for op in graph.ops[: graph.n_forward]:
        known[op.outputs[0]] = _result(graph, op, [known[name] for name in op.inputs if name])
    return known[graph.output]


def _result(graph: Graph, op: Op, operands: list[Tensor]) -> Tensor:
    if op.kind == "reshape":
        return operands[0].reshape(graph.tensors[op.outputs[0]].shape)
    return FUNCTIONS[op.kind](op.attributes, *operands)


def loss_of(loss: str, output: Tensor, y: Array, weight: Tensor | None = None) -> Tensor:
    """By torch's own functions."""
    if loss == "mse":
        return F.mse_loss(output, torch.from_numpy(y).double())
    label = torch.from_numpy(y)
    label = label.double() if loss == "soft_cross_entropy" else label.long()
    return F.cross_entropy(output, label, weight)


@dataclass
class Oracle:
    """A net that torch trains, with the same interface for a step as an executor."""

    graph: Graph
    program: Program
    values: dict[str, Tensor]
    rule: Sgd

    @classmethod
    def of(cls, graph: Graph, program: Program, seed: int, rule: Sgd) -> Oracle:
        """From the Program's initial values."""
        arrays = program.layout.unflatten(program.initial(seed))
        values = {name: torch.from_numpy(a).double() for name, a in arrays.items()}
        for name in set(program.trained_names).difference(program.tracked):
            values[name].requires_grad_()
        return cls(graph, program, values, rule)

    def __post_init__(self) -> None:
        trained = [value for value in self.values.values() if value.requires_grad]
        self.optimizer = torch.optim.SGD(
            trained, 1.0, self.rule.momentum, weight_decay=self.rule.weight_decay
        )

    def step(self, x: Array, y: Array, lr: float) -> float:
        """Train on one batch; returns its mean loss before the update."""
        output = output_of(self.graph, self.values, torch.from_numpy(x).double())
        loss = loss_of(self.program.loss, output, y, self.values.get("loss.weight"))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.param_groups[0]["lr"] = lr
        self._clip()
        self.optimizer.step()
        return float(loss.detach())

    def _clip(self) -> None:
        """By the global norm; torch's own adds 1e-6 to it."""
        if not self.rule.clip:
            return
        gradients = [p.grad for p in self.optimizer.param_groups[0]["params"] if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))
        for gradient in gradients:
            gradient *= min(1.0, self.rule.clip / float(norm)) if norm else 1.0

    @property
    def vector(self) -> Array:
        """The values in the order of the averaged vector."""
        flat = [self.values[p.name].detach().flatten() for p in self.program.layout.parameters]
        whole: Any = torch.cat(flat).numpy()
        return np.asarray(whole)

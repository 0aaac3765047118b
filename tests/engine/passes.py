"""What the tests of the passes share: training graphs, and Programs of graphs as they stand."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedtiny.engine.autodiff import differentiate, with_loss
from fedtiny.engine.built import Build
from fedtiny.engine.ir import Graph
from fedtiny.engine.memory import check_memory, plan_memory
from fedtiny.engine.program import Hyper, Program
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.layout import FROZEN
from fedtiny.values import Sgd
from tests.engine.nets import Array, trained


def trained_names(graph: Graph) -> tuple[str, ...]:
    return tuple(p.name for p in graph.layout.parameters if p.group != FROZEN)


def training_graph(forward: Graph, loss: str = "cross_entropy", clip: bool = False) -> Graph:
    graph = with_loss(forward, loss)
    return differentiate(graph, trained_names(graph), clip)


def program_of(graph: Graph, loss: str = "cross_entropy", clip: bool = False) -> Program:
    memory = plan_memory(graph)
    return Build(
        graph, memory, check_memory(graph, memory), trained_names(graph),
        Sgd(clip=0.1 if clip else 0.0), loss, "all", (), 0,
    ).program  # fmt: skip


def results(
    graph: Graph, loss: str = "cross_entropy", clip: bool = False, dtype: Any = np.float32
) -> tuple[Array, Array]:
    """The losses and the parameters of two steps, executed as the graph stands."""
    program = program_of(graph, loss, clip)
    executor = ReferenceExecutor(program.image, dtype)
    losses, _ = trained(executor, program, [Hyper(0.05, clip=0.1 if clip else 0.0)] * 2)
    return losses, np.frombuffer(executor.store(), dtype)


def same_bits(one: tuple[Array, Array], other: tuple[Array, Array]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))

"""An emulated Cortex-M4 learns what this machine does, in few instructions."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import cortex_m4
from benchmarks.cortex_m4 import Outcome, Task, emulated, firmware
from fedtiny.engine.builder import Net
from fedtiny.engine.built import STACK_BYTES
from fedtiny.engine.compile import compile
from fedtiny.engine.program import Hyper, Program
from fedtiny.values import Sgd
from tests.engine.int8_nets import ranged
from tests.engine.nets import samples

pytestmark = pytest.mark.skipif(
    bool(cortex_m4.missing()),
    reason=f"needs {' and '.join(cortex_m4.missing())}: {cortex_m4.INSTALL}",
)
STEPS = 3


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return firmware(tmp_path_factory.mktemp("cortex-m4"))


def net() -> Net:
    """A residual block behind a convolution, with channel counts that no tile divides too."""
    net = Net((9, 7, 3))
    stem = net.relu6(net.conv(net.input, 16, 3, stride=2, padding=1, name="stem"))
    inner = net.relu6(net.conv(stem, 40, 1, name="expand"))
    inner = net.relu6(net.conv(inner, 40, 3, padding=1, groups=40))
    value = net.add(stem, net.conv(inner, 16, 1))
    value = net.max_pool(net.relu(net.conv(value, 10, 2)), 2)
    net.linear(net.avg_pool(value, 1), 3)
    return net


def trained(elf: Path, program: Program, hyper: Hyper) -> tuple[Task, Outcome]:
    x, y = samples(program)
    task = Task(program, ranged(program, reach=4.0), x, y, hyper, STEPS)
    return task, emulated(elf, task)


@pytest.mark.parametrize("head", ["float32", "int8"])
@pytest.mark.parametrize("plan", ["all", "biases+last:1+named:expand.weight{in=1/4}"])
def test_its_int8_steps_give_the_bits_of_this_machine(elf: Path, plan: str, head: str) -> None:
    rule = Sgd(momentum=0.9 if plan == "all" else 0.0, clip=0.5 if plan == "all" else 0.0)
    program = compile(net(), loss="cross_entropy", ram="1MiB", batch=2, sgd=rule, plan=plan,
                      dtype="int8", head=head)  # fmt: skip
    task, outcome = trained(elf, program, Hyper(0.05, momentum=rule.momentum, clip=rule.clip))
    assert outcome.vector == task.here()
    assert outcome.stack_bytes <= STACK_BYTES


def test_its_float32_steps_do_too(elf: Path) -> None:
    program = compile(net(), loss="cross_entropy", ram="1MiB", batch=2)
    task, outcome = trained(elf, program, Hyper(0.05))
    assert outcome.vector == task.here()


def test_a_pointwise_layer_takes_few_instructions(elf: Path) -> None:
    """1.45 a multiply-add when this was written."""
    pointwise = Net((8, 8, 96))
    pointwise.linear(pointwise.global_avg_pool(pointwise.conv(pointwise.input, 96, 1)), 2)
    instructions, work = cortex_m4.counted(elf, pointwise, "last:1").share(slice(1))
    assert work == 8 * 8 * 96 * 96
    assert work < instructions < 1.8 * work

"""Torch modules as Programs: what they compute and learn is what torch computes and learns."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import process_time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.nn import functional

import fedtiny
from fedtiny import Learner
from fedtiny.engine.program import Executor, Hyper
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.engine.torch_frontend import convert, load_vector, to_vector
from fedtiny.errors import CompileError
from tests.engine.nets import Array
from tests.engine.torch_modules import (
    NETS,
    Shared,
    built,
    conv4,
    ds_cnn,
    labels,
    loss_of,
    mobilenet_v2,
    modules,
)  # fmt: skip

BATCH, LR = 2, 0.05


@dataclass
class Pair:
    """A module in float64 and its Program, which learn from the same samples."""

    module: nn.Module
    shape: tuple[int, ...]
    loss: str

    def __post_init__(self) -> None:
        example = torch.zeros(1, *self.shape)
        self.program = fedtiny.compile(
            self.module, example, loss=self.loss, ram="16MiB", flash="16MiB", batch=BATCH
        )
        self.held = convert(self.module, example).held
        self.judge = copy.deepcopy(self.module).double()
        self.generator = torch.Generator().manual_seed(5)

    def samples(self) -> tuple[Tensor, Tensor]:
        x = torch.randn(BATCH, *self.shape, generator=self.generator)
        return x, labels(self.loss, self.program.output_shape[0], BATCH, self.generator)

    def step_torch(self, x: Tensor, y: Tensor) -> float:
        trained = [p for p in self.judge.parameters() if p.requires_grad]
        value = loss_of(self.loss, self.judge(x.double()), y)
        with torch.no_grad():
            for p, gradient in zip(trained, torch.autograd.grad(value, trained), strict=True):
                p.sub_(LR * gradient)
        return value.item()

    def step(self, executor: Executor, x: Tensor, y: Tensor) -> float:
        axes = self.program.axes or range(x.dim() - 1)
        stored = x.permute(0, *(a + 1 for a in axes)).contiguous()
        y = y if self.loss == "mse" else y.int()
        return executor.step(stored.numpy(), y.numpy(), Hyper(LR))

    def judged(self) -> dict[str, Array]:
        """The float64 values of torch, as the device holds them."""
        tensors = {**dict(self.judge.named_buffers()), **dict(self.judge.named_parameters())}
        return {
            name: (tensors[h.fqn].detach().flatten()[h.order] if h.fqn else h.values).numpy()
            for name, h in self.held.items()
        }

    def vector(self) -> Array:
        """The same as an averaged vector in float64."""
        judged = self.judged()
        return np.concatenate([judged[p.name].ravel() for p in self.program.layout.parameters])


def learn(pair: Pair, steps: int) -> tuple[Array, Array]:
    """How far the reference in float64 is from torch in the losses, and in the values reached."""
    executor = ReferenceExecutor(pair.program.image, np.float64)
    executor.load(pair.vector())
    losses = [(pair.step(executor, *s), pair.step_torch(*s))
              for s in (pair.samples() for _ in range(steps))]  # fmt: skip
    reached = np.frombuffer(executor.store(), np.float64)
    return np.abs(np.diff(losses)).ravel(), np.abs(reached - pair.vector())


@pytest.mark.parametrize("name", NETS)
def test_twenty_steps_in_float64_are_those_of_torch(name: str) -> None:
    losses, values = learn(Pair(built(NETS[name]), *NETS[name][1:]), 20)
    assert losses.max() < 1e-9
    assert values.max() < 1e-9


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(modules())
def test_random_modules_learn_as_torch_does(made: tuple[nn.Module, tuple[int, ...]]) -> None:
    losses, values = learn(Pair(*made, "cross_entropy"), 2)
    assert losses.max() < 1e-9
    assert values.max() < 1e-9


@pytest.mark.parametrize("name", NETS)
def test_each_float32_step_from_the_state_of_torch_is_near_it(name: str) -> None:
    pair = Pair(built(NETS[name]), *NETS[name][1:])
    learner = Learner(pair.program, "native")
    for _ in range(5):
        x, y = pair.samples()
        learner.load(pair.vector().astype(np.float32))
        pair.step(learner.executor, x, y)
        pair.step_torch(x, y)
        found = pair.program.layout.unflatten(np.asarray(learner.vector()))
        for parameter, expected in pair.judged().items():
            worst = np.abs(found[parameter] - expected).max()
            assert worst <= 1e-5 * np.abs(expected).max(), parameter


# ---- parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_a_program_starts_from_the_modules_values(name: str) -> None:
    module = built(NETS[name])
    pair = Pair(module, *NETS[name][1:])
    np.testing.assert_array_equal(pair.program.initial(1), pair.vector().astype(np.float32))
    np.testing.assert_array_equal(to_vector(module, pair.program), pair.program.initial(1))


@pytest.mark.parametrize("name", NETS)
def test_a_vector_goes_into_a_module_and_comes_back(name: str) -> None:
    case = NETS[name]
    module = built(case)
    program = Pair(module, *case[1:]).program
    vector = np.random.default_rng(0).uniform(0.5, 1, program.layout.size).astype(np.float32)
    load_vector(module, program, vector)
    np.testing.assert_array_equal(to_vector(module, program), vector)
    x = torch.randn(BATCH, *case[1])
    learner = Learner(program, "reference")
    learner.load(vector)
    expected = module.eval()(x).detach().numpy()
    np.testing.assert_allclose(np.asarray(learner.predict(x)), expected, rtol=1e-5, atol=1e-5)


def test_names_groups_and_shapes_are_those_that_the_device_has() -> None:
    module = ds_cnn(channels=4, blocks=1)
    module.get_submodule("2").requires_grad_(False)
    layout = Pair(module, (1, 49, 10), "cross_entropy").program.layout
    told = {p.name: (p.shape, p.group) for p in layout.parameters}
    assert told["1.weight"] == ((10, 4, 1, 4), "shared")
    assert told["2.weight"] == told["2.running_var"] == ((4,), "frozen")
    assert told["4.weight"] == ((3, 3, 1, 4), "shared")
    assert told["13.weight"] == ((4, 12), "shared")


def test_tied_parameters_are_one() -> None:
    layout = Pair(Shared(), (2, 5, 5), "mse").program.layout
    assert [p.name for p in layout.parameters] == [
        "first.weight", "first.bias", "again.weight", "again.bias",
        "encode.weight", "encode.bias", "turn.weight", "turn.bias", "back.bias",
    ]  # fmt: skip


def test_a_linear_layer_behind_a_flatten_has_its_rows_in_the_stored_order() -> None:
    head = nn.Linear(2 * 2 * 3, 1)
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), head)
    start = convert(module, torch.zeros(1, 1, 2, 3)).net.start["2.weight"]
    # Torch has the pixels of channel 0, then those of channel 1; a device both channels by pixel.
    channels_last = [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]
    np.testing.assert_array_equal(start[:, 0], head.weight.detach()[0, channels_last])


def test_pictures_are_stored_channels_last_and_plain_tables_as_they_are() -> None:
    def axes(module: nn.Module, *shape: int) -> tuple[int, ...]:
        return convert(module, torch.zeros(1, *shape)).axes

    assert axes(nn.Sequential(nn.Flatten(), nn.Linear(24, 2)), 2, 3, 4) == (1, 2, 0)
    assert axes(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), 3, 4) == ()
    assert axes(nn.Sequential(nn.Conv1d(3, 2, 3), nn.Flatten(), nn.Linear(4, 2)), 3, 4) == (1, 0)
    assert axes(nn.Linear(3, 2), 3) == ()


def test_a_layer_that_a_torch_name_does_not_fit_keeps_its_values() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(2, 3))
            self.offset = nn.Parameter(torch.randn(2))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.kernel, self.offset)

    module = Own()
    program = Pair(module, (3,), "mse").program
    assert [p.name for p in program.layout.parameters] == ["kernel.weight", "offset.bias"]
    load_vector(module, program, np.arange(8, dtype=np.float32))
    assert module.kernel.tolist() == [[0, 2, 4], [1, 3, 5]]
    assert module.offset.tolist() == [6, 7]


def test_another_module_is_not_given_the_values() -> None:
    program = Pair(nn.Linear(3, 2), (3,), "mse").program
    with pytest.raises(CompileError, match=r"module\.weight has the shape \(3, 2\) in the Program"):
        to_vector(nn.Linear(3, 4), program)


# ---- batch normalisation ---------------------------------------------------------------------


def normalised(**how: float | bool) -> nn.Sequential:
    norm = nn.BatchNorm2d(2, **how)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))


@pytest.mark.parametrize("momentum", [0.1, 0.25, 1.0])
def test_running_statistics_and_predictions_are_those_of_torch(momentum: float) -> None:
    pair = Pair(normalised(momentum=momentum), (1, 4, 4), "mse")
    assert [p.group for p in pair.program.layout.parameters if "running" in p.name] == [
        "statistics", "statistics",
    ]  # fmt: skip
    learner = Learner(pair.program, "native")
    learner.load(to_vector(pair.module, pair.program))
    for _ in range(10):
        x, y = pair.samples()
        pair.step(learner.executor, x, y)
        pair.step_torch(x, y)
    found = pair.program.layout.unflatten(np.asarray(learner.vector()))
    for name in pair.program.tracked:
        np.testing.assert_allclose(found[name], pair.judged()[name], rtol=1e-5, atol=1e-6)
    expected = pair.judge.eval()(x.double()).detach().numpy()
    np.testing.assert_allclose(np.asarray(learner.predict(x)), expected, rtol=1e-4, atol=1e-5)


def test_a_norm_without_running_statistics_goes_by_the_batch_in_predictions_too() -> None:
    pair = Pair(normalised(track_running_stats=False), (1, 4, 4), "mse")
    assert pair.program.tracked == ()
    learner = Learner(pair.program, "reference")
    learner.load(to_vector(pair.module, pair.program))
    x, _ = pair.samples()
    expected = pair.module.eval()(x).detach().numpy()
    np.testing.assert_allclose(np.asarray(learner.predict(x)), expected, rtol=1e-4, atol=1e-5)


def test_a_module_has_the_same_values_in_training_and_evaluation() -> None:
    module = normalised()
    program = Pair(module.eval(), (1, 4, 4), "mse").program
    vector = to_vector(module, program)
    np.testing.assert_array_equal(to_vector(module.train(), program), vector)


def test_a_momentum_between_thousandths_is_refused() -> None:
    with pytest.raises(CompileError, match=r"momentum of 0\.12345"):
        Pair(normalised(momentum=0.12345), (1, 4, 4), "mse")


def test_statistics_that_two_norms_would_move_are_refused() -> None:
    norm = nn.BatchNorm2d(2)
    twice = nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.ReLU(), norm, nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(CompileError, match=r"two normalisations move 1\.running_mean"):
        Pair(twice, (1, 4, 4), "mse")


def test_folding_changes_no_output() -> None:
    module = built(NETS["mobilenet"])
    x = torch.randn(BATCH, 3, 12, 12)
    programs = [
        fedtiny.compile(module, x, loss="cross_entropy", ram="1MiB", batch=BATCH, fold=fold)
        for fold in (False, True)
    ]
    outputs = []
    for program in programs:
        learner = Learner(program, "reference")
        learner.load(to_vector(module, program))
        outputs.append(np.asarray(learner.predict(x)))
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    plain, folded = programs
    assert not [p.name for p in folded.layout.parameters if "running" in p.name]
    assert folded.report()["ram_bytes"] < plain.report()["ram_bytes"]
    with pytest.raises(CompileError, match="fold=False"):
        load_vector(module, folded, to_vector(module, folded))


def test_a_norm_behind_a_layer_that_others_read_is_not_folded() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.head((y + self.norm(y)).flatten(1))  # type: ignore[no-any-return]

    converted = convert(Forked().eval(), torch.zeros(1, 1, 4, 4), fold=True)
    assert not converted.folded
    assert "norm.running_mean" in converted.held


# ---- the mapping -----------------------------------------------------------------------------


class Called(nn.Module):
    """A function of the input and of a few layers, and a linear layer over what it gives."""

    def __init__(self, forward: Callable[[Called, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.tokens = (
            nn.Conv2d(2, 3, 2),
            nn.LayerNorm([3, 3, 4]),
            nn.Linear(2, 3),
        )
        self.call = forward
        self.head = nn.Linear(forward(self, torch.zeros(1, 2, 4, 5)).numel(), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.call(self, x).flatten(1))  # type: ignore[no-any-return]


FORWARDS: dict[str, Callable[[Called, Tensor], Tensor]] = {
    "views": lambda m, x: x.view(x.size(0), -1).unsqueeze(1).squeeze(1)[:, :].view(-1, 20, 2),
    "tokens": lambda m, x: torch.relu(m.tokens(x.flatten(2).transpose(1, 2))).mean(1),
    "softmax over channels": lambda m, x: x.softmax(1),
    "layer norm of the whole": lambda m, x: m.norm(m.conv(x)),
    "a copy changed in place": lambda m, x: x + x.clone().relu_() + torch.tanh(x).add_(x),
    "a view changed in place": lambda m, x: changed_in_place(x + x),
    "flat parts": lambda m, x: torch.cat([x.flatten(1), m.conv(x).flatten(1)], 1),
    "padding on two sides": lambda m, x: m.conv(functional.pad(x, (1, 0, 0, 1))),
    "last windows that reach out": lambda m, x: functional.max_pool2d(x, 3, 2, ceil_mode=True),
    "two stages of pooling": lambda m, x: functional.adaptive_avg_pool2d(
        functional.avg_pool2d(x, (1, 2), 1), (2, 1)),
}  # fmt: skip


def changed_in_place(x: Tensor) -> Tensor:
    torch.relu_(x.flatten(1))
    return x


@pytest.mark.parametrize("name", FORWARDS)
def test_what_forward_does_between_layers_is_understood(name: str) -> None:
    module = Called(FORWARDS[name])
    x = torch.randn(BATCH, 2, 4, 5)
    program = fedtiny.compile(module, x, loss="mse", ram="1MiB", batch=BATCH)
    learner = Learner(program, "reference")
    learner.load(to_vector(module, program))
    expected = module(x).detach().numpy()
    np.testing.assert_allclose(np.asarray(learner.predict(x)), expected, rtol=1e-5, atol=1e-6)


# ---- without torch ---------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
import fedtiny
program = fedtiny.Program(open(sys.argv[1], "rb").read())
learner = fedtiny.Learner(program)
learner.load(program.initial(1))
learner.step([0.5] * 784, [2], 0.1)
print("torch" in sys.modules, program.sample_shape)
"""


def test_a_program_runs_where_there_is_no_torch(tmp_path: Path) -> None:
    program = fedtiny.compile(
        conv4(nn.BatchNorm2d, 4), torch.zeros(1, 1, 28, 28), loss="cross_entropy", ram="1MiB"
    )
    (tmp_path / "net.fti").write_bytes(program.image)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "net.fti")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == "False (1, 28, 28)\n"


FULL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv4, batch norm": (lambda: conv4(nn.BatchNorm2d, 32), (1, 28, 28)),
    "ds-cnn": (lambda: ds_cnn(64, 4), (1, 49, 10)),
    "mobilenet v2": (mobilenet_v2, (3, 96, 96)),
}


@pytest.mark.parametrize("name", FULL)
def test_nets_of_full_size_compile_in_five_seconds(name: str) -> None:
    make, shape = FULL[name]
    module = make()
    started = process_time()  # other tests may run beside this one
    fedtiny.compile(module, torch.zeros(1, *shape), loss="cross_entropy", ram="16MiB", flash="4MiB")
    assert process_time() - started < 5

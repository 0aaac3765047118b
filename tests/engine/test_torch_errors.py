"""What cannot be compiled is refused by the name of the module inside and what to use instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fedtiny
from fedtiny.errors import CompileError, GraphError


class Called(nn.Module):
    """A module whose forward is a function."""

    def __init__(self, forward: Callable[..., object], **parts: nn.Module) -> None:
        super().__init__()
        self.fc, self.gain = nn.Linear(4, 3), nn.Parameter(torch.ones(4))
        self.body = nn.ModuleDict(parts)
        self.call = forward

    def forward(self, *inputs: Tensor) -> object:
        return self.call(self, *inputs)


def refused(module: nn.Module, example: object) -> CompileError:
    with pytest.raises(CompileError) as caught:
        fedtiny.compile(module, example, loss="cross_entropy", ram="1MiB")
    return caught.value


FLAT, IMAGE = torch.zeros(1, 4), torch.zeros(1, 3, 8, 8)


def before(*layers: nn.Module) -> nn.Module:
    """The layers and a head, under a name."""
    module = nn.Sequential()
    module.add_module("body", nn.Sequential(*layers))
    module.add_module("flatten", nn.Flatten())
    return module


LAYERS = {
    "GELU": (before(nn.Linear(4, 3), nn.GELU()), FLAT, r"body\.1 \(GELU\): gelu .*use ReLU"),
    "dropout": (before(nn.Linear(4, 3), nn.Dropout(0.3)), FLAT,
                r"body\.1 \(Dropout\): dropout drops 0\.3 .*\.eval\(\)"),
    "LSTM": (nn.LSTM(4, 3), torch.zeros(1, 5, 4), r"LSTM: .*use Conv1d"),
    "transposed": (before(nn.ConvTranspose2d(3, 4, 3)), IMAGE,
                   r"body\.0 \(ConvTranspose2d\): conv_transpose2d"),
    "dilation": (before(nn.Conv2d(3, 4, 3, dilation=2)), IMAGE, r"dilation \[2, 2\]; use a larger"),
    "circular": (before(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")), IMAGE,
                 r"pads \[1, 1, 1, 1\] by circular; .*by zeros"),
    "padded ReLU": (before(nn.ZeroPad2d(1), nn.ReLU(), nn.Conv2d(3, 4, 3)), IMAGE,
                    r"body\.1 \(ReLU\): relu reads padded values; .*before a convolution"),
    "layer norm": (before(nn.LayerNorm(4)), torch.zeros(1, 5, 4),
                   r"\(LayerNorm\): .*\(4,\) of \(5, 4\).*use GroupNorm\(1, channels\)"),
    "adaptive": (before(nn.AdaptiveAvgPool2d(3)), IMAGE, r"makes \(3, 3\) of \(8, 8\); .*divide"),
    "uncounted": (before(nn.AvgPool2d(3, 2, 1, count_include_pad=False)), IMAGE,
                  "count_include_pad"),
    "reaching out": (before(nn.AvgPool2d(3, 2, ceil_mode=True)), IMAGE, "ceil_mode"),
    "hardtanh": (before(nn.Hardtanh()), FLAT, r"from -1\.0 to 1\.0 .*use ReLU6"),
    "image": (nn.Conv2d(3, 4, 3), IMAGE, r"output has the shape \('batch', 4, 6, 6\); .*Flatten"),
    "flattened": (before(nn.Conv2d(3, 4, 3)), IMAGE, r"stores channels last; end in a Linear"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_named_with_what_to_use_instead(name: str) -> None:
    module, example, message = LAYERS[name]
    error = refused(module, example)
    assert isinstance(error, GraphError)
    with pytest.raises(GraphError, match=message):
        raise error


def shuffled(m: Called, x: Tensor) -> Tensor:
    """The channels of an image, moved between its rows."""
    turned = m.body["conv"](x).permute(0, 2, 1, 3).reshape(x.shape)
    return m.body["conv"](turned).mean((2, 3))  # type: ignore[no-any-return]


FORWARDS: dict[str, tuple[Callable[..., object], object, str]] = {
    "log softmax": (lambda m, x: functional.log_softmax(m.fc(x), 1), FLAT,
                    "leave it out: the loss cross_entropy takes logits"),
    "a product": (lambda m, x: m.fc(x * 2), FLAT, "mul cannot be compiled; scale the samples"),
    "a number": (lambda m, x: m.fc(x) + 1, FLAT, "add takes the number 1; scale the samples"),
    "a parameter": (lambda m, x: m.fc(x + m.gain), FLAT, "add computes with gain"),
    "a turned weight": (lambda m, x: functional.linear(m.fc(x), m.fc.weight.t()), FLAT,
                        r"t computes with fc\.weight"),
    "a computed weight": (lambda m, x: functional.linear(x, x), FLAT,
                          "linear has a computed weight"),
    "a part": (lambda m, x: m.fc(x.flatten(1)[:, :4]), IMAGE, "slice takes a part of a value"),
    "a chunk": (lambda m, x: x.chunk(2, 1)[0], FLAT, "chunk .*give each part"),
    "the batch": (lambda m, x: m.fc(x.reshape(-1, 4)), IMAGE, "moves or joins the batch axis"),
    "the mean of samples": (lambda m, x: m.fc(x) + m.fc(x).mean(0), FLAT, "averages over the sam"),
    "shapes": (lambda m, x: m.fc(x) + m.fc(x)[:, :].mean(1, keepdim=True), FLAT,
               r"adds 1 times \(1,\) to \(3,\)"),
    "orders": (lambda m, x: m.body["conv"](x).flatten(1) + m.body["flat"](x.flatten(1)), IMAGE,
               "stores in different orders"),
    "shuffled": (shuffled, IMAGE, r"body\.conv \(Conv2d\): conv2d needs its input \(2, 3, 8, 8\)"),
    "two outputs": (lambda m, x: (m.fc(x), x), FLAT, "output has 2 parts"),
    "no features": (lambda m, x: m.fc(x).mean(1), FLAT, r"output has the shape \('batch',\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARDS)
def test_what_forward_may_not_do_is_named(name: str) -> None:
    forward, example, message = FORWARDS[name]
    module = Called(forward, conv=nn.Conv2d(3, 3, 1), flat=nn.Linear(192, 192))
    with pytest.raises(GraphError, match=message):
        raise refused(module, example)


RECORDED: dict[str, tuple[Callable[..., object], object, str]] = {
    "a branch": (lambda m, x: m.fc(x) if x.sum() > 0 else -x, FLAT,
                 "Called cannot be recorded .* may not branch or shape by the values"),
    "a mask": (lambda m, x: m.fc(x[x > 0].view(-1, 4)), FLAT, "depends on the values of a sample"),
    "a shape": (lambda m, x: m.fc(x).nonzero().float(), FLAT, "devices need fixed shapes"),
    "a wrong example": (lambda m, x: m.fc(x), torch.zeros(1, 5), "must take the example input"),
    "two inputs": (lambda m, x, y: m.fc(x + y), (FLAT, FLAT), "the example has 2 inputs"),
    "no example": (lambda m, x: m.fc(x), None, "needs an example input: compile"),
    "one axis": (lambda m, x: m.fc(x), torch.zeros(4), r"shape \(4,\); give \(batch, \.\.\.\)"),
    "integers": (lambda m, x: m.fc(x), torch.zeros(1, 4, dtype=torch.int64),
                 "the example input is torch.int64; .*float32"),
    "complex": (lambda m, x: m.fc(x), torch.zeros(1, 4, dtype=torch.complex64), "torch.complex64"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_what_cannot_be_recorded_is_refused(name: str) -> None:
    forward, example, message = RECORDED[name]
    with pytest.raises(CompileError, match=message):
        raise refused(Called(forward), example)


def test_complex_and_integer_weights_are_refused_by_name() -> None:
    with pytest.raises(CompileError, match=r"the parameter 0\.weight is torch\.complex64"):
        raise refused(nn.Sequential(nn.Linear(4, 3, dtype=torch.complex64)), FLAT)


def test_float64_weights_are_rounded() -> None:
    module = nn.Linear(4, 3).double()
    program = fedtiny.compile(module, FLAT, loss="mse", ram="1MiB")
    assert program.initial(0)[0] == module.weight[0, 0].float()


def test_a_model_over_the_limit_is_refused_before_it_is_looked_at() -> None:
    module = nn.Sequential(nn.Linear(4000, 4100), nn.GELU())  # 4 x (4000 x 4100 + 4100) B
    with pytest.raises(CompileError, match=r"65,616,400 B .* 64,000,000 B.*raise max_model"):
        raise refused(module, torch.zeros(1, 4000))
    with pytest.raises(GraphError, match="GELU"):
        fedtiny.compile(
            module, torch.zeros(1, 4000), loss="mse", ram="1MiB", max_model="128MB"
        )  # fmt: skip


def test_statistics_of_a_single_value_are_refused() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    assert "raise the batch" in str(refused(module, FLAT))
    fedtiny.compile(module, FLAT, loss="mse", ram="1MiB", batch=2)


def test_a_norm_must_train_both_its_parameters() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4))
    module[1].bias.requires_grad = False
    assert "1 (GroupNorm): group_norm must have both" in str(refused(module, FLAT))


class Blocked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.first(x)
        found: Tensor = self.last(x)
        return found


def test_what_has_no_values_is_refused() -> None:
    for module, example, told in (
        (Blocked(), torch.zeros(1, 3), "no_grad"),
        (nn.LazyLinear(2), torch.zeros(1, 3), "have no values yet"),
        (nn.Linear(3, 2, device="meta"), torch.zeros(1, 3), "have no values yet"),
        (nn.Linear(3, 2), "hello", "is no tensor"),
        (nn.Linear(3, 2), torch.zeros(1, 3).to_sparse(), "sparse"),
    ):
        with pytest.raises(CompileError, match=told):
            fedtiny.compile(module, example, loss="cross_entropy", ram="64KiB")


def test_values_that_are_not_finite_are_refused() -> None:
    module = nn.Linear(3, 2)
    nn.init.constant_(module.bias, float("nan"))
    with pytest.raises(GraphError, match="not finite"):
        fedtiny.compile(module, torch.zeros(1, 3), loss="cross_entropy", ram="64KiB")

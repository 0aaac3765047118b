"""The nets of the field as people write them in torch, small; and random ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)  # such small nets only wait for more, on a machine that is busy


def sine_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )


def conv4(norm: Callable[[int], nn.Module], channels: int = 4) -> nn.Module:
    """Omniglot: four blocks of convolution, norm, ReLU and pooling."""
    layers: list[nn.Module] = []
    for index in range(4):
        layers.append(nn.Conv2d(channels if index else 1, channels, 3, padding=1))
        layers += [norm(channels), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 5))


def separable(width: int, channels: int) -> list[nn.Module]:
    depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
    pointwise = nn.Conv2d(width, channels, 1, bias=False)
    norms = nn.BatchNorm2d(width), nn.BatchNorm2d(channels)
    return [depthwise, norms[0], nn.ReLU(), pointwise, norms[1], nn.ReLU()]


def ds_cnn(channels: int = 4, blocks: int = 2) -> nn.Module:
    """Speech words: 49 x 10 MFCCs, the padding of TensorFlow's "same"."""
    first = [nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, channels, (10, 4), 2, bias=False)]
    middle = [layer for _ in range(blocks) for layer in separable(channels, channels)]
    head = nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 12)
    return nn.Sequential(*first, nn.BatchNorm2d(channels), nn.ReLU(), *middle, *head).eval()


class InvertedResidual(nn.Module):
    """MobileNetV2's block."""

    def __init__(self, width: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        self.residual = stride == 1 and width == channels
        self.body = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)  # type: ignore[no-any-return]


def mobilenet(
    stages: Sequence[tuple[int, int, int, int]] = ((2, 8, 1, 1), (3, 12, 1, 2)), last: int = 12
) -> nn.Module:
    """From stages of (expansion, channels, blocks, first stride)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    width = 8
    for expansion, channels, blocks, stride in stages:
        for block in range(blocks):
            layers.append(InvertedResidual(width, channels, 1 if block else stride, expansion))
            width = channels
    layers += [nn.Conv2d(width, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 4)).eval()


def mobilenet_v2() -> nn.Module:
    """The stages of MobileNetV2 at a width of 0.35."""
    stages = ((1, 8, 1, 1), (6, 8, 2, 2), (6, 16, 3, 2), (6, 24, 4, 2), (6, 32, 3, 1),
              (6, 56, 3, 2), (6, 112, 1, 1))  # fmt: skip
    return mobilenet(stages, 1280)


class Residual(nn.Module):
    """ResNet's block, in place wherever it can be."""

    def __init__(self, width: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or width != channels:
            self.shortcut = nn.Conv2d(width, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """Two blocks, global pooling by a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding="same")
        self.blocks = nn.Sequential(Residual(6, 6, 1), Residual(6, 8, 2))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))  # type: ignore[no-any-return]


def har() -> nn.Module:
    """Motion: windows of 6 channels."""
    return nn.Sequential(
        nn.Conv1d(6, 8, 5, 2, 2), nn.GroupNorm(2, 8), nn.Hardswish(), nn.MaxPool1d(2),
        nn.Conv1d(8, 8, 3, padding=1), nn.LeakyReLU(0.125), nn.AvgPool1d(2),
        nn.Flatten(), nn.Linear(8 * 4, 6),
    )  # fmt: skip


class Shared(nn.Module):
    """One convolution used twice, and a linear layer whose weight another has too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.encode = nn.Linear(4 * 5 * 5, 4)
        self.turn = nn.Linear(4, 4)
        self.back = nn.Linear(4, 4)
        self.back.weight = self.turn.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.tanh(self.again(torch.relu(self.again(x))))
        x = torch.tanh(self.encode(x.flatten(1)))
        return self.back(torch.tanh(self.turn(x)))  # type: ignore[no-any-return]


Case = tuple[Callable[[], nn.Module], tuple[int, ...], str]

NETS: dict[str, Case] = {
    "sine mlp": (sine_mlp, (1,), "mse"),
    "conv4, batch norm": (lambda: conv4(nn.BatchNorm2d), (1, 28, 28), "cross_entropy"),
    "conv4, group norm": (lambda: conv4(lambda c: nn.GroupNorm(2, c)), (1, 28, 28),
                          "cross_entropy"),
    "ds-cnn": (ds_cnn, (1, 49, 10), "cross_entropy"),
    "mobilenet": (mobilenet, (3, 12, 12), "cross_entropy"),
    "resnet": (lambda: ResNet().eval(), (3, 8, 8), "cross_entropy"),
    "har": (har, (6, 32), "cross_entropy"),
    "shared": (Shared, (2, 5, 5), "mse"),
}  # fmt: skip


def built(case: Case) -> nn.Module:
    """The module with values of its own: running statistics that are not 0 and 1 as well."""
    torch.manual_seed(3)
    module = case[0]()
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + 0.5 * name.endswith("var"))
    return module


# ---- random modules --------------------------------------------------------------------------


class Branches(nn.Module):
    """The results of two modules, joined."""

    def __init__(self, left: nn.Module, right: nn.Module, join: str) -> None:
        super().__init__()
        self.left, self.right, self.join = left, right, join

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        return left + right if self.join == "add" else torch.cat([left, right], 1)


class Turned(nn.Module):
    """Positions as tokens: a linear layer over the channels of each."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Identity,
    lambda: nn.LeakyReLU(0.25), lambda: nn.ReLU(inplace=True), lambda: nn.Hardtanh(0, 6),
)  # fmt: skip


@st.composite
def modules(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A module over small pictures, and the shape of a sample."""
    torch.manual_seed(draw(st.integers(0, 99)))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(4, 9), st.integers(4, 9)))
    body, width = nn.Sequential(), shape[0]
    for _ in range(draw(st.integers(1, 4))):
        block, width = draw(_block(width))
        body.extend(block)
    try:
        features = body.eval()(torch.zeros(1, *shape)).shape
    except ValueError:  # an instance norm over a single pixel
        reject()
    if draw(st.booleans()):
        head: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)]
    else:
        head = [nn.Flatten(), nn.Linear(features[1:].numel(), 3)]
    return nn.Sequential(*body, *head).train(draw(st.booleans())), shape


@st.composite
def _block(draw: st.DrawFn, width: int) -> tuple[list[nn.Module], int]:
    """Layers that keep an image an image, and the channels behind them."""
    kind = draw(st.sampled_from(["conv", "depthwise", "pool", "branches", "tokens"]))
    activation = draw(st.sampled_from(ACTIVATIONS))()
    channels = draw(st.integers(1, 6))
    if kind == "pool":
        pools = nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1, 1), nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        return [draw(st.sampled_from(pools)), activation], width
    if kind == "depthwise":
        pad = nn.ZeroPad2d(draw(st.tuples(*[st.integers(0, 1)] * 4)))
        return [pad, nn.Conv2d(width, width, 2, groups=width), activation], width
    if kind == "tokens":
        return [Turned(width, channels), activation], channels
    if kind == "branches":
        join = draw(st.sampled_from(["add", "cat"]))
        left = nn.Sequential(nn.Conv2d(width, channels, 3, padding="same"), activation)
        right = nn.Conv2d(width, channels, 1)
        return [Branches(left, right, join)], channels * (1 + (join == "cat"))
    return [_conv(draw, width, channels), *_norm(draw, channels), activation], channels


def _conv(draw: st.DrawFn, width: int, channels: int) -> nn.Module:
    windows: list[Any] = [(1, 1, 0), (3, 1, 1), (3, 2, 1), ((3, 2), (1, 2), 1)]
    kernel, stride, padding = draw(st.sampled_from(windows))
    return nn.Conv2d(width, channels, kernel, stride, padding, bias=draw(st.booleans()))


def _norm(draw: st.DrawFn, channels: int) -> list[nn.Module]:
    norms: list[Any] = [None, nn.BatchNorm2d(channels), nn.GroupNorm(channels, channels),
                        nn.GroupNorm(1, channels), nn.InstanceNorm2d(channels)]  # fmt: skip
    norm = draw(st.sampled_from(norms))
    return [norm] if norm else []


def labels(loss: str, outputs: int, batch: int, generator: torch.Generator) -> Tensor:
    """What a batch is to learn."""
    if loss == "mse":
        return torch.randn(batch, outputs, generator=generator)
    return torch.randint(outputs, (batch,), generator=generator)


def loss_of(loss: str, output: Tensor, y: Tensor) -> Tensor:
    """By torch's own functions."""
    if loss == "mse":
        return functional.mse_loss(output, y.to(output.dtype))
    return functional.cross_entropy(output, y)

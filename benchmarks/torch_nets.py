"""The nets of steps.py as people write them in torch: a module and the shape of a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from fedtiny.engine import zoo

Layers = list[nn.Module]


def conv4(pool: bool) -> tuple[nn.Module, tuple[int, ...]]:
    """Four convolutions of 32 channels, then five classes."""
    layers: list[nn.Module] = []
    for index in range(4):
        stride = 1 if pool else 2
        layers.append(nn.Conv2d(32 if index else 1, 32, 3, stride, 1, bias=pool))
        layers += [] if pool else [nn.GroupNorm(4, 32)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)] if pool else [nn.ReLU()]
    features = 32 if pool else 32 * 2 * 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 5)), (1, 28, 28)


def ds_cnn() -> tuple[nn.Module, tuple[int, ...]]:
    """DS-CNN-S with batch norms that are frozen, as in fine-tuning on a device."""
    layers: list[nn.Module] = [nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, 64, (10, 4), 2, bias=False)]
    layers += [nn.BatchNorm2d(64), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(64, 64, 3, 1, 1, groups=64, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        layers += [nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12)
    return nn.Sequential(*layers, *head).eval(), (1, 49, 10)


NETS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "Omniglot conv4, 32 channels, max-pooling": lambda: conv4(pool=True),
    "Omniglot conv4, 32 channels, stride 2, group norm": lambda: conv4(pool=False),
    "DS-CNN, 49 x 10": ds_cnn,
}


# ---- inverted residual blocks, as fedtiny.engine.zoo has them --------------------------------


def _normalised(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> Layers:
    half = kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, half, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Inverted(nn.Module):
    """A block that widens, filters each channel by itself, and narrows (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        wide = [*_normalised(inputs, inner, 1), nn.ReLU6()] if expansion > 1 else []
        deep = [*_normalised(inner, inner, kernel, stride, inner), nn.ReLU6()]
        self.body = nn.Sequential(*wide, *deep, *_normalised(inner, outputs, 1))
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        made: torch.Tensor = self.body(x)
        return made + x if self.has_shortcut else made


def _inverted_net(
    first: int, blocks: Sequence[tuple[int, int, int, int]], last: int, classes: int
) -> nn.Module:
    """``blocks``: expansion, channels, kernel and stride of each; ``last``: channels, or 0."""
    layers = [*_normalised(3, first, 3, 2), nn.ReLU6()]
    width = first
    for expansion, channels, kernel, stride in blocks:
        layers.append(Inverted(width, channels, kernel, stride, expansion))
        width = channels
    layers += [*_normalised(width, last, 1), nn.ReLU6()] if last else []
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last or width, classes)
    return nn.Sequential(*layers, *head)


def mobilenet_v2(classes: int, width: float = 0.35) -> nn.Module:
    """MobileNetV2."""
    blocks = [
        (expansion, zoo.eighths(channels * width), 3, stride if block == 0 else 1)
        for expansion, channels, count, stride in zoo.MOBILENET_V2
        for block in range(count)
    ]
    return _inverted_net(zoo.eighths(32 * width), blocks, 1280, classes)


def mcunet(classes: int) -> nn.Module:
    """A net in the manner of MCUNet."""
    return _inverted_net(16, zoo.MCUNET, 0, classes)

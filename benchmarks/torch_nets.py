"""The nets of steps.py as people write them in torch: a module and the shape of a sample."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


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

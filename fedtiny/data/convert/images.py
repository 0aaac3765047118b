"""Omniglot, Fashion-MNIST and CIFAR-10 as they are published."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedtiny.data.convert.published import Tree, Watch, inside, read, tree
from fedtiny.data.labelled import TEST, TRAINING
from fedtiny.data.readers import DRAWERS
from fedtiny.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

# ---- Omniglot --------------------------------------------------------------------------------

_PICTURE_BYTES, _SIDE = 1 << 16, 105
_CHARACTER = re.compile(r"(?:.*/)?(?P<alphabet>[^/]+)/(?P<name>character\d+)/(\d+)_(\d+)\.png")


class _Drawn(NamedTuple):
    """One picture: of which character, and by which hand."""

    alphabet: str
    character: str
    official: int
    drawer: int
    split: int
    image: Array


def omniglot(folder: Path, watch: Watch) -> dict[str, Array]:
    """Characters of 105 x 105 pixels become 28 x 28 (Lanczos), with ink 255 and paper 0."""
    drawn: list[_Drawn] = []
    for split, part in ((TRAINING, "images_background"), (TEST, "images_evaluation")):
        with tree(folder, part, ".png", _PICTURE_BYTES) as published:
            if not published.names:
                raise DataError(f"{published.place} has no pictures ALPHABET/characterNN/*.png")
            drawn += [_drawn(published, name, split) for name in watch(published.names)]
    alphabets = list(dict.fromkeys(one.alphabet for one in drawn))
    characters = {key: at for at, key in enumerate(dict.fromkeys(one[:2] for one in drawn))}
    return {
        "images": np.stack([one.image for one in drawn]),
        "alphabet": np.array([alphabets.index(one.alphabet) for one in drawn], np.uint8),
        "character": np.array([characters[one[:2]] for one in drawn], np.int16),
        "drawer": np.array([one.drawer for one in drawn], np.uint8),
        "split": np.array([one.split for one in drawn], np.uint8),
        "official_character": np.array([one.official for one in drawn], np.int16),
        "alphabet_names": np.array(alphabets),
    }


def _drawn(published: Tree, name: str, split: int) -> _Drawn:
    match = _CHARACTER.fullmatch(name)
    if match is None or not 1 <= int(match[4]) <= DRAWERS:
        raise DataError(
            f"{published.place}: {name} is not ALPHABET/characterNN/CHARACTER_DRAWER.png with a "
            f"drawer from 1 to {DRAWERS}"
        )
    image = _small(f"{published.place}: {name}", published.read(name))
    return _Drawn(match["alphabet"], match["name"], int(match[3]), int(match[4]) - 1, split, image)


def _small(place: str, png: bytes) -> Array:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("Pillow is not installed: pip install 'fedtiny[simulate]'") from error
    try:
        # The size is known before the pixels are unpacked.
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            if picture.size != (_SIDE, _SIDE) or picture.mode not in ("1", "L"):
                raise DataError(
                    f"{place} is {picture.size} {picture.mode}; it must be {_SIDE} x {_SIDE} in "
                    "black and white, or grey"
                )
            small = picture.convert("L").resize((28, 28), Image.Resampling.LANCZOS)
            return np.uint8(255) - np.asarray(small)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{place} is damaged: {error}") from None


# ---- Fashion-MNIST ---------------------------------------------------------------------------

_MOST_IMAGES = 100_000
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip


def fashion_mnist(folder: Path, watch: Watch) -> dict[str, Array]:
    """Both parts, whole."""
    parts = []
    for part in watch(("train", "t10k")):
        names = (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz")
        paths = (inside(folder, name, f"data/fashion/{name}") for name in names)
        images, labels = _idx(next(paths), (28, 28)), _idx(next(paths), ())
        if len(images) != len(labels):
            raise DataError(f"{folder}: {part} has {len(images):,} images, {len(labels):,} labels")
        parts.append((images, labels))
    images, labels = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return {"images": images, **_split(labels, len(parts[0][1]), _CLOTHES)}


def _idx(path: Path, shape: tuple[int, ...]) -> Array:
    """The bytes of an IDX file: a magic number, the sizes (big-endian), then the values."""
    header_bytes = 4 * (2 + len(shape))
    try:
        with gzip.open(path) as file:
            header = file.read(header_bytes)
            if len(header) < header_bytes:
                raise DataError(f"{path} is shorter than its header of {header_bytes} B")
            magic, count, *sizes = np.frombuffer(header, ">u4").tolist()
            wanted = 0x0800 + 1 + len(shape)
            if magic != wanted or tuple(sizes) != shape or not 1 <= count <= _MOST_IMAGES:
                raise DataError(
                    f"{path} begins with {magic}, {count}, {sizes}; it must be {wanted}, a number "
                    f"from 1 to {_MOST_IMAGES:,}, {list(shape)}"
                )
            total = count * int(np.prod(shape))
            # One byte more than there should be tells a file that goes on.
            values = file.read(total + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if len(values) != total:
        more = "or more" if len(values) > total else "B"
        raise DataError(f"{path} must hold {total:,} B of values; it holds {len(values):,} {more}")
    return np.frombuffer(values, np.uint8).reshape(count, *shape)


# ---- CIFAR-10 --------------------------------------------------------------------------------

_RECORD_BYTES, _BATCHES = 1 + 3 * 32 * 32, 5
_OBJECTS = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def cifar10(folder: Path, watch: Watch) -> dict[str, Array]:
    """The binary version: each record is a label and three planes of colour."""
    place = inside(folder, "data_batch_1.bin", "cifar-10-batches-bin/data_batch_1.bin").parent
    names = [*(f"data_batch_{k + 1}.bin" for k in range(_BATCHES)), "test_batch.bin"]
    records = [_records(inside(place, name)) for name in watch(names)]
    every = np.concatenate(records)
    planes = every[:, 1:].reshape(-1, 3, 32, 32)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return {"images": images, **_split(every[:, 0], len(every) - len(records[-1]), _OBJECTS)}


def _records(path: Path) -> Array:
    data = read(path, _MOST_IMAGES * _RECORD_BYTES)
    if not data or len(data) % _RECORD_BYTES:
        raise DataError(
            f"{path} has {len(data):,} B; it must be whole records of {_RECORD_BYTES:,} B"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD_BYTES)
    for at in np.flatnonzero(records[:, 0] >= len(_OBJECTS))[:1]:
        raise DataError(f"{path}: record {at:,} has label {records[at, 0]}; there are 10 classes")
    return records


def _split(labels: Array, training: int, names: tuple[str, ...]) -> dict[str, Array]:
    return {
        "label": labels,
        "split": np.where(np.arange(len(labels)) < training, TRAINING, TEST).astype(np.uint8),
        "class_names": np.array(names),
    }

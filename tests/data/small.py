"""Small data sets: files in the formats of the real ones, and labelled samples in memory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedtiny.data.labelled import NO_CLIENT, Labelled

Array = npt.NDArray[Any]


def labelled(
    classes: int = 6, each: int = 40, clients: int = 0, test: float = 0.0, seed: int = 0
) -> Labelled:
    """``each`` samples a class; x is the row number, so that a sample tells where it is from.

    Clients take turns; the last ones, or the last samples of each class, are the test.
    """
    rng = np.random.default_rng(seed)
    n = classes * each
    label = rng.permutation(np.repeat(np.arange(classes, dtype=np.int32), each))
    client = (np.arange(n) % clients if clients else np.full(n, NO_CLIENT)).astype(np.int32)
    split = np.zeros(n, np.uint8)
    if clients:
        split[client >= round(clients * (1 - test))] = 1
    else:
        for c in range(classes):
            split[np.flatnonzero(label == c)[round(each * (1 - test)) :]] = 1
    names = tuple(f"class {c}" for c in range(classes))
    superclass = (np.arange(classes) // 3).astype(np.int32)
    return Labelled(
        np.arange(n, dtype=np.float32)[:, None], label, client, split, names, superclass
    )


def omniglot() -> dict[str, Array]:
    """Two alphabets of three characters, the second one for the test; four drawers."""
    character = np.repeat(np.arange(6), 4)
    alphabet = (character // 3).astype(np.uint8)
    images = np.zeros((24, 28, 28), np.uint8)
    images[:, 0, 1] = 255
    images[:, 27, 27] = np.arange(24)
    return {
        "images": images,
        "alphabet": alphabet,
        "character": character.astype(np.int16),
        "drawer": np.tile(np.arange(4, dtype=np.uint8), 6),
        "split": alphabet,
        "alphabet_names": np.array(["Alpha", "Beta"]),
        "alphabet_split": np.array([0, 1], np.uint8),
    }


def uci_har() -> dict[str, Array]:
    """Three subjects, the second one for the test; the last activity is no basic one."""
    rng = np.random.default_rng(1)
    subject = np.repeat(np.array([1, 2, 3], np.uint8), 14)
    return {
        "windows": rng.integers(-9000, 9000, (42, 128, 6), dtype=np.int16),
        "scale": np.full(6, 1e-4, np.float32),
        "subject": subject,
        "activity": np.tile(np.arange(14) // 2, 3).astype(np.uint8),
        "experiment": subject,
        "start": np.tile(200 * np.arange(14, dtype=np.int32), 3),
        "split": (subject == 2).astype(np.uint8),
        "activity_names": np.array([f"activity {a}" for a in range(7)]),
    }


def speech_words() -> dict[str, Array]:
    """Twelve speakers of two words, named so that some of them are test speakers."""
    rng = np.random.default_rng(2)
    return {
        "mfcc": rng.integers(-128, 127, (24, 49, 10), dtype=np.int8),
        "mfcc_scale": np.ones(10, np.float32),
        "word": np.tile(np.array([0, 1], np.uint8), 12),
        "speaker": np.repeat(np.arange(12, dtype=np.int16), 2),
        "word_names": np.array(["bed", "cat"]),
        "speaker_hash": np.array([f"{s:08x}" for s in range(12)]),
    }


def fsdd() -> dict[str, Array]:
    """Two speakers of digits 0 and 9, six times each; clip i has 4000 + 500 i samples of 16384."""
    lengths = 4000 + 500 * np.arange(24)
    return {
        "samples": np.full(lengths.sum(), 16384, np.int16),
        "offsets": np.cumsum([0, *lengths]),
        "digit": np.tile(np.array([0, 9], np.uint8), 12),
        "speaker": np.repeat(np.array([0, 1], np.uint8), 12),
        "index": np.tile(np.repeat(np.arange(6, dtype=np.uint8), 2), 2),
        "speaker_names": np.array(["ann", "bob"]),
    }


def fashion_mnist() -> dict[str, Array]:
    """Ten classes, two training and one test image each."""
    return {
        "images": np.arange(30 * 784, dtype=np.uint32).astype(np.uint8).reshape(30, 28, 28),
        "label": np.tile(np.arange(10, dtype=np.uint8), 3),
        "split": np.repeat(np.array([0, 0, 1], np.uint8), 10),
        "class_names": np.array([f"class {c}" for c in range(10)]),
    }


def cifar10(size: tuple[int, int] = (32, 32)) -> dict[str, Array]:
    """One training and one test picture a class, each of one colour."""
    pictures = [_jpeg(size, (10 * k, 100, 200)) for k in range(20)]
    return {
        "jpeg": np.frombuffer(b"".join(pictures), np.uint8),
        "offsets": np.cumsum([0, *map(len, pictures)]),
        "label": np.tile(np.arange(10, dtype=np.uint8), 2),
        "split": np.repeat(np.array([0, 1], np.uint8), 10),
        "class_names": np.array([f"class {c}" for c in range(10)]),
    }


def _jpeg(size: tuple[int, int], colour: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "JPEG", quality=95)
    return stream.getvalue()


FILES = {
    "omniglot": omniglot,
    "uci-har": uci_har,
    "speech-words": speech_words,
    "spoken-digits": fsdd,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
}


def write(path: Path, arrays: dict[str, Any]) -> Path:
    """The arrays as an .npz file."""
    np.savez_compressed(path, **arrays)
    return path

"""Small folders in the layouts in which the data sets are published."""

from __future__ import annotations

import gzip
import wave
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]


def wav(path: Path, samples: Array, rate_hz: int, channels: int = 1, sample_bytes: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(sample_bytes)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())


def png(path: Path, ink: tuple[slice, slice], side: int = 105) -> None:
    """Black ink on white paper, one bit a pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    paper = np.full((side, side), 255, np.uint8)
    paper[ink] = 0
    Image.fromarray(paper).convert("1").save(path)


def omniglot(folder: Path) -> Path:
    """Two background alphabets and one for evaluation, two characters each, eight drawers.

    The ink of drawer d is a rectangle at column 12 (d - 1).
    """
    number = 0
    for part, alphabets in (
        ("images_background", ("Alpha", "Beta")),
        ("images_evaluation", ("Gamma",)),
    ):
        for alphabet in alphabets:
            for character in (1, 2):
                number += 1
                for drawer in range(1, 9):
                    name = f"{alphabet}/character{character:02}/{number:04}_{drawer:02}.png"
                    ink = slice(30, 60), slice(12 * (drawer - 1), 12 * drawer + 3)
                    png(folder / part / name, ink)
    return folder


def zipped(folder: Path, part: str) -> None:
    """``folder/part`` as the zip file of that name, in its place."""
    with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
        for path in sorted((folder / part).rglob("*.png")):
            archive.write(path, path.relative_to(folder))
            path.unlink()
    (folder / part).rename(folder / "gone")


HAR_LABELS = """1 1 5 11 400
1 1 8 401 500
1 1 1 501 640
2 2 4 1 320
"""


def har_signal(experiment: int, samples: int) -> Array:
    """Acceleration and rotation: slow waves, one outlier, and gravity on the first channel."""
    t = np.arange(samples)[:, None] / 50
    signal = 0.2 * np.sin(2 * np.pi * t * (1 + 0.2 * np.arange(6)) + experiment)
    signal[:, 0] += 1.0
    signal[70, 2] = 3.0
    return np.asarray(signal)


def uci_har(folder: Path) -> Path:
    """Two experiments; subject 2 is of the test."""
    place = folder / "RawData"
    place.mkdir(parents=True)
    (place / "labels.txt").write_text(HAR_LABELS)
    for experiment, samples in ((1, 700), (2, 320)):
        signal = har_signal(experiment, samples)
        for sensor, columns in (("acc", signal[:, :3]), ("gyro", signal[:, 3:])):
            name = f"{sensor}_exp{experiment:02}_user{experiment:02}.txt"
            np.savetxt(place / name, columns, fmt="%.10f")
    return folder


def digit(samples: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(-9000, 9000, samples, np.int16)


def spoken_digits(folder: Path) -> Path:
    """Two speakers of digits 0 and 9; indices 0 and 7."""
    for seed, (number, speaker, index) in enumerate(
        (d, s, i) for d in (0, 9) for s in ("ann", "bob") for i in (0, 7)
    ):
        name = f"{number}_{speaker}_{index}.wav"
        wav(folder / "recordings" / name, digit(3000 + 1000 * seed, seed), 8000)
    return folder


SPEAKERS = [f"{s:08x}" for s in range(12)]


def speech_words(folder: Path) -> Path:
    """Two words by twelve speakers, one clip shorter than a second, and a noise."""
    for k, word in enumerate(("bed", "cat")):
        for s, speaker in enumerate(SPEAKERS):
            samples = 16_000 - 4000 * (s == 3)
            wav(folder / word / f"{speaker}_nohash_0.wav", digit(samples, 20 * k + s), 16_000)
    wav(folder / "_background_noise_" / "pink_noise.wav", digit(100, 99), 16_000)
    return folder


def idx(path: Path, values: Array, count: int | None = None) -> None:
    sizes = [len(values) if count is None else count, *values.shape[1:]]
    header = np.array([0x0800 + values.ndim, *sizes], ">u4").tobytes()
    with gzip.open(path, "wb") as file:
        file.write(header + values.tobytes())


def fashion_images(count: int) -> Array:
    return np.arange(count * 784, dtype=np.uint32).astype(np.uint8).reshape(count, 28, 28)


def fashion_mnist(folder: Path) -> Path:
    """Twenty training and ten test images."""
    folder.mkdir(exist_ok=True)
    for part, count in (("train", 20), ("t10k", 10)):
        idx(folder / f"{part}-images-idx3-ubyte.gz", fashion_images(count))
        labels = np.arange(count, dtype=np.uint8) % 10
        idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


def cifar_record(label: int, seed: int) -> bytes:
    planes = np.random.default_rng(seed).integers(0, 256, 3072, np.uint8)
    return bytes([label]) + planes.tobytes()


def cifar10(folder: Path) -> Path:
    """Two records a batch; record r of batch b is number 2 b + r, of class number % 10."""
    place = folder / "cifar-10-batches-bin"
    place.mkdir(parents=True)
    for batch in range(6):
        name = "test_batch.bin" if batch == 5 else f"data_batch_{batch + 1}.bin"
        numbers = (2 * batch, 2 * batch + 1)
        (place / name).write_bytes(b"".join(cifar_record(k % 10, k) for k in numbers))
    return folder


FOLDERS = {
    "omniglot": omniglot,
    "uci-har": uci_har,
    "speech-words": speech_words,
    "spoken-digits": spoken_digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
}

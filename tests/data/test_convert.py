"""Published folders become files that the readers take; what is damaged is named."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from PIL import Image

from fedtiny.data.convert import CONVERTERS, convert
from fedtiny.data.convert.motion import _smooth
from fedtiny.data.convert.sound import WORDS
from fedtiny.data.files import DATA_SETS
from fedtiny.data.labelled import Labelled
from fedtiny.data.recordings import Windows, framed
from fedtiny.errors import DataError
from tests.data import published

T = TypeVar("T")


def watch(parts: Sequence[T]) -> Iterable[T]:
    return parts


def converted(name: str, tmp_path: Path) -> Labelled:
    folder = published.FOLDERS[name](tmp_path / "published")
    return convert(name, folder, tmp_path / DATA_SETS[name].file, watch)


# ---- round trips -----------------------------------------------------------------------------


def test_every_data_set_has_a_converter() -> None:
    assert list(CONVERTERS) == list(DATA_SETS) == list(published.FOLDERS)


@pytest.mark.parametrize("name", CONVERTERS)
def test_a_converted_file_is_read_and_recognised(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = converted(name, tmp_path)
    monkeypatch.setenv("FEDTINY_DATA", str(tmp_path))
    assert DATA_SETS[name].is_converted()
    again = DATA_SETS[name].check()
    np.testing.assert_array_equal(again.x, data.x)
    assert set(data.split.tolist()) == {0, 1}


def test_fashion_mnist_comes_from_its_repository_as_well(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    published.fashion_mnist(tmp_path / "data" / "fashion")
    assert len(convert("fashion-mnist", tmp_path, tmp_path / "f.npz", watch).x) == 30


@pytest.mark.parametrize("name", CONVERTERS)
def test_the_same_folder_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    folder = published.FOLDERS[name](tmp_path / "published")
    for out in ("a.npz", "b.npz"):
        convert(name, folder, tmp_path / out, watch)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("archives", [False, True])
def test_omniglot_comes_from_folders_or_the_official_zips(archives: bool, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    if archives:  # as they lie in the repository
        published.zipped(published.omniglot(folder / "python"), "images_evaluation")
    else:
        published.omniglot(folder)
    data = convert("omniglot", folder, tmp_path / "o.npz", watch)
    names = ("Alpha 0", "Alpha 1", "Beta 2", "Beta 3", "Gamma 4", "Gamma 5")
    assert data.class_names == names
    assert data.label.tolist() == np.repeat(np.arange(6), 8).tolist()
    assert data.client.tolist() == [20 * (c // 2) + d for c in range(6) for d in range(8)]
    assert data.split.tolist() == [0] * 32 + [1] * 16
    # 105 / 28 = 3.75 pixels become one: the ink of drawer 3, rows 30 to 60 and columns 24 to 39,
    # comes to lie in rows 8 to 16 and columns 6.4 to 10.4.
    image = data.x[2].reshape(28, 28)
    assert image[9:15, 8:9].min() > 0.95
    assert image[19:].max() == image[:, 14:].max() == image[:, :3].max() == 0.0


def test_har_is_cut_inside_the_labelled_stretches(tmp_path: Path) -> None:
    data = converted("uci-har", tmp_path)
    with np.load(tmp_path / "uci_har.npz") as a:
        found = np.stack([a[k] for k in ("subject", "activity", "experiment", "start")], axis=1)
        windows = a["windows"] * a["scale"]
    # Samples 10 to 400: windows from 10, 74, 138, 202, 266; 100 samples: none; 140: one from 500;
    # 320: from 0, 64, 128, 192.
    starts = [(1, 4, 1, s) for s in (10, 74, 138, 202, 266)] + [(1, 0, 1, 500)]
    starts += [(2, 3, 2, s) for s in (0, 64, 128, 192)]
    assert list(map(tuple, found.tolist())) == starts
    assert data.split.tolist() == [0] * 6 + [1] * 4
    # Waves of 2 Hz at most pass, less than a sample late: 0.2 * 2 pi 2 / 50 = 0.05. The outlier of
    # 3 does not.
    clean = published.har_signal(1, 700)
    clean[70, 2] = clean[[69, 71], 2].mean()
    np.testing.assert_allclose(windows[0], clean[10:138], atol=0.051)


def test_the_filter_is_a_third_order_butterworth_of_20_hz() -> None:
    # A step passes the median unchanged; its differences are what the filter makes of an impulse.
    step = np.ones((400, 1))
    step[:10] = 0.0
    impulse = np.diff(_smooth(step)[:, 0])
    gain = np.abs(np.fft.rfft(impulse, 500))
    hz = np.array([0, 5, 10, 15, 20, 24])
    warped = np.tan(np.pi * hz / 50) / np.tan(np.pi * 20 / 50)
    np.testing.assert_allclose(gain[hz * 10], 1 / np.sqrt(1 + warped**6), atol=1e-6)


def test_the_filter_starts_settled(tmp_path: Path) -> None:
    converted("uci-har", tmp_path)
    with np.load(tmp_path / "uci_har.npz") as a:
        first = a["windows"][6] * a["scale"]  # sample 0 of experiment 2, with gravity
    np.testing.assert_allclose(first[0], published.har_signal(2, 320)[0], atol=0.02)


def test_a_converted_har_has_its_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = converted("uci-har", tmp_path)
    monkeypatch.setenv("FEDTINY_DATA", str(tmp_path))
    again = Windows(128, 64).prepare(DATA_SETS["uci-har"].recordings())
    np.testing.assert_array_equal(again.x, data.x)


def test_spoken_digits_keep_every_sample(tmp_path: Path) -> None:
    data = converted("spoken-digits", tmp_path)
    assert data.label.tolist() == [0] * 4 + [9] * 4
    assert data.client.tolist() == [0, 0, 1, 1] * 2
    assert data.split.tolist() == [1, 0] * 4  # index 0 is of the test, index 7 is not
    for seed, (offset, clip) in enumerate(zip(*offsets_and_clips(tmp_path), strict=True)):
        assert offset == sum(3000 + 1000 * k for k in range(seed))
        np.testing.assert_array_equal(clip, published.digit(3000 + 1000 * seed, seed))


def offsets_and_clips(folder: Path) -> tuple[list[int], list[published.Array]]:
    with np.load(folder / "fsdd.npz") as a:
        offsets = a["offsets"].tolist()
        return offsets[:-1], np.split(a["samples"], offsets[1:-1])


def test_speech_words_are_mfcc_in_8_bits(tmp_path: Path) -> None:
    data = converted("speech-words", tmp_path)
    assert data.class_names == ("bed", "cat")
    assert data.label.tolist() == [0] * 12 + [1] * 12
    assert data.client.tolist() == list(range(12)) * 2
    with np.load(tmp_path / "speech_words.npz") as a:
        found, scale = a["mfcc"] * a["mfcc_scale"], a["mfcc_scale"]
        assert a["speaker_hash"].tolist() == published.SPEAKERS
    clip = np.zeros((1, 16_000), np.float32)
    clip[0, :12_000] = published.digit(12_000, 3) / 32768
    assert (np.abs(found[3] - framed(WORDS, clip, 320)[0]) <= 0.5001 * scale).all()


def test_fashion_mnist_keeps_every_pixel(tmp_path: Path) -> None:
    data = converted("fashion-mnist", tmp_path)
    images = np.concatenate([published.fashion_images(n) for n in (20, 10)])
    np.testing.assert_array_equal(np.rint(data.x * 255), images.reshape(30, 784))
    assert data.label.tolist() == list(range(10)) * 3
    assert data.split.tolist() == [0] * 20 + [1] * 10


def test_cifar_keeps_every_byte_in_rows_columns_colours(tmp_path: Path) -> None:
    data = converted("cifar10", tmp_path)
    assert data.label.tolist() == [k % 10 for k in range(12)]
    assert data.split.tolist() == [0] * 10 + [1] * 2
    planes = np.frombuffer(published.cifar_record(7, 7)[1:], np.uint8).reshape(3, 32, 32)
    image = np.rint(data.x[7] * 255).reshape(32, 32, 3)
    for colour in range(3):
        np.testing.assert_array_equal(image[:, :, colour], planes[colour])


@pytest.mark.data
def test_the_published_digits_give_the_arrays_of_the_data_set(
    tmp_path: Path, data_dir: Path
) -> None:
    with np.load(data_dir / "fsdd.npz") as a:
        known = {name: a[name] for name in a.files}
    clips = np.split(known["samples"], known["offsets"][1:-1])
    # Every tenth recording, by the name that its authors gave it.
    rows = np.arange(0, 3000, 10)
    for row in rows:
        speaker = known["speaker_names"][known["speaker"][row]]
        name = f"{known['digit'][row]}_{speaker}_{known['index'][row]}.wav"
        published.wav(tmp_path / "recordings" / name, clips[row], 8000)
    convert("spoken-digits", tmp_path, tmp_path / "fsdd.npz", watch)
    with np.load(tmp_path / "fsdd.npz") as a:
        np.testing.assert_array_equal(a["samples"], np.concatenate([clips[row] for row in rows]))
        for column in ("digit", "speaker", "index"):
            np.testing.assert_array_equal(a[column], known[column][rows])


# ---- whole or not at all ---------------------------------------------------------------------


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(file: object, **arrays: object) -> None:
        raise KeyboardInterrupt

    folder = published.cifar10(tmp_path / "published")
    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert("cifar10", folder, tmp_path / "c.npz", watch)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_that_its_reader_refuses_gets_no_name(tmp_path: Path) -> None:
    folder = published.fashion_mnist(tmp_path / "published")
    published.idx(folder / "train-labels-idx1-ubyte.gz", np.full(20, 10, np.uint8))
    with pytest.raises(DataError, match="label is 0 to 10"):
        convert("fashion-mnist", folder, tmp_path / "f.npz", watch)
    assert list(tmp_path.iterdir()) == [folder]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "fsdd.npz").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"fsdd\.npz is there already; remove it"):
        converted("spoken-digits", tmp_path)
    assert (tmp_path / "fsdd.npz").read_bytes() == b"mine"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder .*nowhere of a\.npz is not there"):
        convert("cifar10", tmp_path, tmp_path / "nowhere" / "a.npz", watch)


# ---- damaged input ---------------------------------------------------------------------------


def _bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (path,) = folder.rglob(name)
        path.write_bytes(change(path.read_bytes()))

    return damage


def _text(name: str, old: str, new: str) -> Callable[[Path], None]:
    return _bytes(name, lambda data: data.replace(old.encode(), new.encode(), 1))


def _gone(name: str) -> Callable[[Path], None]:
    return lambda folder: next(iter(folder.rglob(name))).unlink()


def _large_picture(folder: Path) -> None:
    (path,) = folder.rglob("0001_01.png")
    Image.new("L", (4000, 4000)).save(path)


def _zip_of_large(folder: Path) -> None:
    (path,) = folder.rglob("0005_01.png")
    path.write_bytes(bytes(1 << 17))
    published.zipped(folder, "images_evaluation")


def _wav(rate_hz: int = 8000, channels: int = 1, samples: int = 10) -> Callable[[Path], None]:
    return lambda folder: published.wav(
        folder / "recordings" / "0_ann_0.wav", np.zeros(samples, np.int16), rate_hz, channels
    )


def _har_text(name: str) -> Callable[[Path], None]:
    return _bytes(name, lambda data: b"1 2 nan\n" * 700)


DAMAGE = [
    ("omniglot", _bytes("0001_01.png", lambda b: b[:60]), r"0001_01\.png is damaged"),
    ("omniglot", _large_picture, r"0001_01\.png is \(4000, 4000\) L; it must be 105 x 105"),
    ("omniglot", _zip_of_large, r"0005_01\.png claims 131,072 B; at most 65,536 B"),
    ("omniglot", lambda f: next(f.rglob("0001_01.png")).rename(f / "images_background" / "1.png"),
     r"1\.png is not ALPHABET/characterNN"),
    ("omniglot", lambda f: (f / "images_evaluation").rename(f / "e"),
     r"has none of images_evaluation, images_evaluation\.zip"),
    ("uci-har", _gone("gyro_exp02_user02.txt"), r"has none of gyro_exp02_user02\.txt"),
    ("uci-har", _text("labels.txt", "1 1 1 501 640", "1 1 1 501 641 7"), r"labels\.txt is damaged"),
    ("uci-har", _text("labels.txt", "501 640", "501 701"), "up to sample 701; it has 700"),
    ("uci-har", _text("labels.txt", "1 1 1 501", "1 1 13 501"), r"row 3: \[1.0, 1.0, 13.0, 501"),
    ("uci-har", _text("labels.txt", "11 400", "11 9"), r"row 1: .*\[1.0, 1.0, 5.0, 11.0, 9.0\]"),
    ("uci-har", _text("labels.txt", "11 400", "0 400"), "row 1: .*first and last sample"),
    ("uci-har", _bytes("acc_exp01_user01.txt", lambda b: b[:-40]),
     r"acc_exp01_user01.txt (is damaged|and gyro)"),
    ("uci-har", _bytes("acc_exp01_user01.txt", lambda b: b"x" + b), "could not convert string 'x"),
    ("uci-har", _har_text("acc_exp01_user01.txt"), r"row 1: \[1.0, 2.0, nan\] is not finite"),
    ("uci-har", _text("acc_exp01_user01.txt", "\n0", "\n9\t"), "acc_exp01"),
    ("spoken-digits", _wav(16_000), r"0_ann_0\.wav has 1 channels of 16 bits at 16,000 Hz.*8,000"),
    ("spoken-digits", _wav(channels=2), "has 2 channels"),
    ("spoken-digits", _wav(samples=0), "claims 0 samples; it must be 1 to 480,000"),
    ("spoken-digits", _bytes("9_bob_7.wav", lambda b: b[:-9]),
     r"9_bob_7\.wav says 10,000 samples but holds 9,99"),
    ("spoken-digits", _bytes("9_bob_7.wav", lambda b: b[:30]), r"9_bob_7\.wav is damaged"),
    ("spoken-digits", _bytes("9_bob_7.wav", lambda b: b"RIFX" + b[4:]), "start with RIFF"),
    ("spoken-digits", lambda f: next(f.rglob("9_bob_7.wav")).rename(f / "recordings" / "a.wav"),
     r"a\.wav is not named DIGIT_SPEAKER_INDEX\.wav"),
    ("speech-words", lambda f: next(f.rglob("*_nohash_0.wav")).rename(f / "bed" / "x.wav"),
     r"x\.wav is not named SPEAKER_nohash"),
    ("fashion-mnist", _gone("t10k-labels-idx1-ubyte.gz"), "has none of t10k-labels-idx1-ubyte.gz"),
    ("fashion-mnist", _bytes("train-images-idx3-ubyte.gz", lambda b: b[:200]), "is damaged: "),
    ("fashion-mnist", _bytes("train-images-idx3-ubyte.gz", lambda b: gzip.compress(b"abc")),
     "is shorter than its header of 16 B"),
    ("fashion-mnist", lambda f: published.idx(
        f / "train-images-idx3-ubyte.gz", published.fashion_images(20), count=2**31),
     r"begins with 2051, 2147483648, \[28, 28\]; it must be 2051, a number from 1 to 100,000"),
    ("fashion-mnist", lambda f: published.idx(
        f / "train-images-idx3-ubyte.gz", published.fashion_images(20), count=21),
     "must hold 16,464 B of values; it holds 15,680 B"),
    ("fashion-mnist", lambda f: published.idx(
        f / "train-images-idx3-ubyte.gz", published.fashion_images(20), count=19),
     "must hold 14,896 B of values; it holds 14,897 or more"),
    ("fashion-mnist", lambda f: published.idx(
        f / "train-labels-idx1-ubyte.gz", np.zeros(19, np.uint8)), "20 images, 19 labels"),
    ("cifar10", _gone("data_batch_3.bin"), r"has none of data_batch_3\.bin"),
    ("cifar10", _bytes("data_batch_3.bin", lambda b: b[:-1]),
     r"data_batch_3\.bin has 6,145 B; it must be whole records of 3,073 B"),
    ("cifar10", _bytes("test_batch.bin", lambda b: b[:3073] + b"\x0a" + b[3074:]),
     r"test_batch\.bin: record 1 has label 10; there are 10 classes"),
    ("cifar10", _bytes("test_batch.bin", lambda b: b""), "has 0 B"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_what_is_damaged_is_named_and_leaves_no_file(
    name: str, damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = published.FOLDERS[name](tmp_path / "published")
    damage(folder)
    out = tmp_path / "out.npz"
    with pytest.raises(DataError, match=message):
        convert(name, folder, out, watch)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = published.uci_har(tmp_path / "published")
    with (folder / "RawData" / "labels.txt").open("ab") as file:
        file.truncate(1 << 26)
    with pytest.raises(DataError, match=r"labels\.txt has 67,108,864 B; at most 33,554,432 B"):
        convert("uci-har", folder, tmp_path / "h.npz", watch)

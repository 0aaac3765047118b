"""Readers: what each file gives, and what becomes of a file that is wrong."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtiny.data import files, npz
from fedtiny.data.files import DATA_SETS, data_set
from fedtiny.data.labelled import NO_CLIENT, Labelled
from fedtiny.data.npz import read_arrays
from fedtiny.errors import DataError, ExperimentError
from tests.data import small


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a small file in the place of each real one."""
    monkeypatch.setenv("FEDTINY_DATA", str(tmp_path))
    for name, make in small.FILES.items():
        small.write(tmp_path / DATA_SETS[name].file, make())
    return tmp_path


# ---- what a file gives -----------------------------------------------------------------------


def test_every_data_set_has_a_small_one() -> None:
    assert list(small.FILES) == list(DATA_SETS)


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_reader_gives_labelled_samples(name: str, folder: Path) -> None:
    data = data_set(name).load()
    kinds = [str(column.dtype) for column in (data.x, data.label, data.client, data.split)]
    assert kinds == ["float32", "int32", "int32", "uint8"]
    assert set(data.split.tolist()) == {0, 1}
    assert not data.x.flags.writeable
    assert data_set(name).load() is data


def test_omniglot_has_alphabets_and_drawers(folder: Path) -> None:
    data = data_set("omniglot").load()
    assert data.class_names == ("Alpha 0", "Alpha 1", "Alpha 2", "Beta 3", "Beta 4", "Beta 5")
    assert data.superclass is not None
    assert data.superclass.tolist() == [0, 0, 0, 1, 1, 1]
    # The images of character 4 by drawer 2: alphabet 1 of 20 drawers.
    row = 4 * 4 + 2
    assert (data.label[row], data.client[row], data.split[row]) == (4, 22, 1)
    assert data.x[row, [0, 1, 783]].tolist() == [0.0, 1.0, np.float32(row / 255)]


def test_har_has_six_activities_standardised_by_the_training_subjects(folder: Path) -> None:
    data = data_set("uci-har").load()
    assert data.classes == 6
    assert sorted(set(data.client.tolist())) == [1, 2, 3]
    assert data.x.shape == (36, 768)
    training = data.x.reshape(-1, 128, 6)[data.split == 0]
    np.testing.assert_allclose(training.mean(axis=(0, 1), dtype=float), 0.0, atol=1e-6)
    np.testing.assert_allclose(training.std(axis=(0, 1), dtype=float), 1.0, atol=1e-6)
    arrays = small.uci_har()
    channel = arrays["windows"][(arrays["activity"] < 6) & (arrays["split"] == 0), :, 3]
    expected = (arrays["windows"][0, 5, 3] - channel.mean()) / channel.std()
    assert data.x[0, 5 * 6 + 3] == pytest.approx(expected, abs=1e-6)


def test_speech_words_keep_the_test_speakers_of_speech_commands(folder: Path) -> None:
    # By the published rule: SHA-1 of the name, modulo 2^27, is 10 to 20 % of 2^27 - 1.
    import hashlib

    names = [f"{s:08x}" for s in range(12)]
    tenths = [
        int(hashlib.sha1(n.encode()).hexdigest(), 16) % 2**27 * 10 // (2**27 - 1) for n in names
    ]
    expected = {s for s, tenth in enumerate(tenths) if tenth == 1}
    data = data_set("speech-words").load()
    assert set(data.client[data.split == 1].tolist()) == expected


def test_spoken_digits_are_a_second_of_sound_or_silence(folder: Path) -> None:
    data = data_set("spoken-digits").load()
    sounding = (data.x == 0.5).sum(axis=1)
    np.testing.assert_array_equal(sounding, np.minimum(4000 + 500 * np.arange(24), 8000))
    assert (data.split == 1).sum() == 20  # index 0 to 4, of two digits and two speakers


def test_pictures_of_cifar_are_rows_columns_colours(folder: Path) -> None:
    data = data_set("cifar10").load()
    assert data.x.shape == (20, 3072)
    np.testing.assert_allclose(
        data.x[7].reshape(-1, 3), np.tile(np.array([70, 100, 200]) / 255, (1024, 1)), atol=0.02
    )
    assert (data.client == NO_CLIENT).all()


# ---- what is wrong with a file ---------------------------------------------------------------


def test_a_missing_folder_is_named_with_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDTINY_DATA", raising=False)
    with pytest.raises(
        DataError,
        match=r"omniglot\.npz; set FEDTINY_DATA.*brendenlake.*data convert omniglot FOLDER",
    ):
        data_set("omniglot").load()


def test_a_missing_file_is_named_with_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDTINY_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=r"uci_har\.npz, which is not there.*uci\.edu.*data convert uci-har FOLDER"
    ):
        data_set("uci-har").load()


def test_an_unknown_data_set_is_named_with_the_nearest() -> None:
    with pytest.raises(ExperimentError, match=r"did you mean 'omniglot'.*uci-har"):
        data_set("omniglott")


def _set(name: str, index: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][index] = value

    return change


def _give(name: str, make: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        arrays[name] = make(arrays[name])

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("omniglot", lambda a: a.pop("drawer"), r"no array 'drawer'; it has \['alphabet"),
        ("omniglot", _give("images", lambda x: x[:, :27]), "images is 'u1 24 27 28'.*28 28"),
        ("omniglot", _give("character", lambda x: x.astype("i4")), "character is 'i4 24'"),
        ("omniglot", _give("split", lambda x: x[1:]), r"split is 'u1 23'.*\{'n': 24\}"),
        ("omniglot", _give("drawer", lambda x: x.astype(object)), "drawer is 'O 24'"),
        ("omniglot", _give("images", np.asfortranarray), "row by row"),
        ("omniglot", _set("character", 3, -1), "character is -1 to 5"),
        ("omniglot", _set("character", slice(4, 8), 0), "a character has no image"),
        ("omniglot", _set("alphabet", 0, 1), "in two alphabets"),
        ("omniglot", _set("alphabet", 0, 2), "alphabet goes up to 2.*2 alphabets"),
        ("omniglot", _set("drawer", 0, 20), "drawer to 20"),
        ("omniglot", _set("split", 0, 2), "split is 0 to 2"),
        ("uci-har", _set("windows", (..., 2), 7), r"channels \[2\] never change"),
        ("uci-har", _set("split", slice(None), 1), "no training samples"),
        ("uci-har", _give("activity_names", lambda x: x[:4]), r"label is 0 to 5; .*\[0, 3\]"),
        ("speech-words", _set("speaker", 0, 12), "speaker is 0 to 12; 12 have a hash"),
        ("speech-words", _set("word", 0, 9), "label is 0 to 9"),
        ("spoken-digits", _set("offsets", 3, 0), "offsets must be 25 numbers that ascend"),
        ("spoken-digits", _set("digit", 0, 10), "label is 0 to 10"),
        ("fashion-mnist", _set("label", 0, 10), "label is 0 to 10"),
        ("fashion-mnist", _give("images", lambda x: x[:0]), "label is 'u1 30'"),
        ("cifar10", _give("offsets", lambda x: x[:-1]), "offsets must be 21 numbers.*has 20"),
        ("cifar10", _set("jpeg", slice(0, 20), 0), "picture 0 is damaged"),
        ("cifar10", lambda a: a.update(small.cifar10((32, 31))), r"picture 0 is \(32, 31\)"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(
    name: str, change: Callable[[dict[str, Any]], None], message: str, folder: Path
) -> None:
    arrays = small.FILES[name]()
    change(arrays)
    small.write(folder / DATA_SETS[name].file, arrays)
    files._load.cache_clear()
    with pytest.raises(DataError, match=message) as raised:
        data_set(name).load()
    assert f"{DATA_SETS[name].file}: " in str(raised.value)


def test_a_file_that_is_no_archive_is_damaged(folder: Path) -> None:
    (folder / "omniglot.npz").write_bytes(b"not a zip file")
    files._load.cache_clear()
    with pytest.raises(DataError, match=r"omniglot\.npz: it is damaged: File is not a zip file"):
        data_set("omniglot").load()


def test_nothing_is_unpacked_that_claims_too_much(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz, "MOST_BYTES", 18_000)
    with pytest.raises(DataError, match="images claims 18,944 B; at most 18,000 B"):
        read_arrays(folder / "omniglot.npz", {"images": "u1 n 28 28"})


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros(8, np.uint8))
    lying = stream.getvalue().replace(b"(8,)", b"(9,)")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", lying)
    with pytest.raises(DataError, match="x is 'u1 9', 9 B, but holds 8 B"):
        read_arrays(tmp_path / "a.npz", {"x": "u1 n"})


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_bytes_give_a_data_error_or_the_same_samples(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = small.write(tmp_path / "a.npz", small.uci_har())
    good = path.read_bytes()
    expected = DATA_SETS["uci-har"].read(path)
    damaged = bytearray(good)
    # The array of the windows is most of the file; the rest is where readers stumble.
    places = st.integers(0, 200) | st.integers(len(good) - 2500, len(good) - 1)
    for at in data.draw(st.lists(places, min_size=1, max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        found = DATA_SETS["uci-har"].read(path)
    except DataError:
        return
    np.testing.assert_array_equal(found.x, expected.x)
    np.testing.assert_array_equal(found.label, expected.label)


def test_missing_pillow_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    files._load.cache_clear()
    with pytest.raises(DataError, match="Pillow is not installed: pip install"):
        data_set("cifar10").load()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"x": np.full((240, 1), np.nan, np.float32)}, "240 values of x are not finite"),
        ({"x": np.zeros((0, 1), np.float32)}, "label has shape .240,.; x has 0 rows"),
        ({"label": np.full(240, 6, np.int32)}, r"label is 6 to 6; it must lie in \[0, 5\]"),
        ({"client": np.full(240, -2, np.int32)}, "client is -2"),
        ({"superclass": np.zeros(5, np.int32)}, r"6 classes have superclasses \(5,\)"),
    ],
)
def test_labelled_samples_that_do_not_fit_together_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        replace(small.labelled(), **values)


# ---- the real files --------------------------------------------------------------------------

REAL = {  # samples, features, classes, clients, test samples; as the README of the data says
    "omniglot": (32460, 784, 1623, 1000, 13180),
    "uci-har": (10411, 768, 6, 30, 2996),
    "speech-words": (5188, 490, 3, 1734, 522),
    "spoken-digits": (3000, 8000, 10, 6, 300),
    "fashion-mnist": (2000, 784, 10, 1, 1000),
    "cifar10": (12000, 3072, 10, 1, 2000),
}


@pytest.mark.data
@pytest.mark.parametrize("name", DATA_SETS)
def test_a_real_file_is_the_one_of_the_table(
    name: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDTINY_DATA", str(data_dir))
    data: Labelled = data_set(name).check()
    n, features, classes, clients, test = REAL[name]
    assert (*data.x.shape, data.classes) == (n, features, classes)
    assert (len(set(data.client.tolist())), int(data.split.sum())) == (clients, test)
    assert np.bincount(data.label, minlength=classes).min() > 0


@pytest.mark.data
def test_the_test_subjects_of_har_are_those_of_uci(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDTINY_DATA", str(data_dir))
    data = data_set("uci-har").load()
    subjects = sorted(set(data.client[data.split == 1].tolist()))
    assert subjects == [2, 4, 9, 10, 12, 13, 18, 20, 24]

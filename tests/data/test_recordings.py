"""Raw series cut into windows or heard by a front end, as an experiment declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtiny.data.audio import Spectrum
from fedtiny.data.files import DATA_SETS
from fedtiny.data.labelled import Labelled
from fedtiny.data.partitions import LabelSkew
from fedtiny.data.recordings import FrontEnd, Preparation, Recordings, Windows, framed, standardised
from fedtiny.errors import DataError, ExperimentError
from fedtiny.experiment import Experiment
from tests.data import small

MFCC = FrontEnd(0.04, 0.02, 1.0, 40, 10, 20.0, 4000.0)


def recordings(*lengths: int, channels: int = 1, seed: int = 0) -> Recordings:
    """Series of these lengths; series i is of class i % 2, and the last one is the test."""
    n = len(lengths)
    samples = np.random.default_rng(seed).integers(-9000, 9000, (sum(lengths), channels), np.int16)
    return Recordings(
        samples=samples,
        offsets=np.cumsum([0, *lengths]),
        label=np.arange(n, dtype=np.int32) % 2,
        client=np.arange(n, dtype=np.int32),
        split=(np.arange(n) == n - 1).astype(np.uint8),
        class_names=("even", "odd"),
        rate_hz=8000,
    )


# ---- windows ---------------------------------------------------------------------------------


def test_windows_stay_inside_their_series() -> None:
    series = recordings(10, 3, 8, channels=2)
    cut = Windows(4, 2).prepare(series)
    # 10 samples: windows from 0, 2, 4, 6; 3 samples: none; 8 samples: from 0, 2, 4.
    starts = [0, 2, 4, 6, 13, 15, 17]
    windows = np.stack([series.samples[a : a + 4] for a in starts])
    split = np.array([0] * 4 + [1] * 3)
    np.testing.assert_array_equal(cut.x, standardised(windows, split))
    assert (cut.label.tolist(), cut.client.tolist()) == ([0] * 7, [0] * 4 + [2] * 3)
    assert cut.split.tolist() == split.tolist()


@pytest.mark.parametrize(("hop", "overlapping"), [(3, True), (4, False), (5, False)])
def test_windows_overlap_when_they_are_longer_than_the_hop(hop: int, overlapping: bool) -> None:
    assert Windows(4, hop).prepare(recordings(20, 20)).overlapping is overlapping


def test_a_window_longer_than_every_series_is_refused() -> None:
    with pytest.raises(DataError, match="length = 9, but the longest series has 8 samples"):
        Windows(9, 1).prepare(recordings(8, 5))


# ---- front ends ------------------------------------------------------------------------------


def test_a_clip_is_cut_or_goes_on_in_silence() -> None:
    sound = recordings(5, 9)
    clips = sound.clips(7)
    np.testing.assert_array_equal(clips[0], [*(sound.samples[:5, 0] / 32768), 0, 0])
    np.testing.assert_array_equal(clips[1], sound.samples[5:12, 0] / 32768)


def test_a_front_end_gives_the_standardised_frames_of_the_clips() -> None:
    sound = recordings(8000, 6000, 9000)
    heard = MFCC.prepare(sound)
    # (8000 - 320) / 160 + 1 = 49 frames of 10.
    assert heard.x.shape == (3, 490)
    frames = framed(Spectrum(8000, 320, 40, 10, 20.0, 4000.0), sound.clips(8000), 160)
    training = frames[:2].reshape(-1, 10).astype(np.float64)
    expected = (frames - training.mean(axis=0)) / training.std(axis=0)
    np.testing.assert_allclose(heard.x, expected.reshape(3, -1), atol=2e-3)
    assert not heard.overlapping


def test_frames_of_many_clips_are_those_of_each() -> None:
    spectrum = Spectrum(8000, 64, 8, 0, 100.0, 4000.0)
    clips = recordings(*[300] * 70).clips(300)
    together = framed(spectrum, clips, 100)
    # Frames begin at 0, 100 and 200.
    assert together.shape == (70, 3, 8)
    for clip in (0, 63, 64, 69):
        one = np.stack([clips[clip, a : a + 64] for a in (0, 100, 200)])
        np.testing.assert_array_equal(together[clip], spectrum.frames(one))


@pytest.mark.parametrize(
    ("front_end", "channels", "message"),
    [
        (MFCC, 6, "one channel; these recordings have 6: declare a 'window'"),
        (FrontEnd(0.04, 0.02, 0.03, 40, 10, 20.0, 4000.0), 1, "window = 320, .* clip = 240"),
        (FrontEnd(0.04, 1e-5, 1.0, 40, 10, 20.0, 4000.0), 1, "hop = 0 .*hop must be 1 or more"),
        (FrontEnd(0.04, 0.02, 1.0, 40, 10, 20.0, 8000.0), 1, "high_hz = 8000 must ascend"),
    ],
)
def test_a_front_end_that_does_not_fit_is_refused(
    front_end: FrontEnd, channels: int, message: str
) -> None:
    with pytest.raises(ExperimentError, match=message):
        front_end.prepare(recordings(9000, 9000, channels=channels))


def test_moments_do_not_depend_on_the_order_of_samples() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(1000, 4)) * 30).astype(np.float32)
    order = rng.permutation(1000)
    split = np.zeros(1000, np.uint8)
    np.testing.assert_array_equal(standardised(x[order], split), standardised(x, split)[order])


# ---- in an experiment ------------------------------------------------------------------------

FRONT_END = 'frontend = {kind = "mfcc", window = "40ms", hop = "20ms"}'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDTINY_DATA", str(tmp_path))
    rng = np.random.default_rng(3)
    fsdd = small.fsdd()
    fsdd["samples"] = rng.integers(-9000, 9000, len(fsdd["samples"]), np.int16)
    small.write(tmp_path / "fsdd.npz", fsdd)
    small.write(tmp_path / "uci_har.npz", har_of_series())
    return tmp_path


def har_of_series() -> dict[str, Any]:
    """Two subjects; stretches of 320, 192 and 128 samples each, cut with half overlap."""
    rng = np.random.default_rng(4)
    rows, windows = [], []
    for subject in (1, 2):
        begin = 0
        for activity, length in ((0, 320), (1, 192), (0, 128)):
            series = rng.integers(-9000, 9000, (length, 6), np.int16)
            for at in range(0, length - 127, 64):
                windows.append(series[at : at + 128])
                rows.append((subject, activity, begin + at))
            # The next stretch begins where a window of this one might have begun.
            begin += length - 64
    subject, activity, start = np.array(rows).T
    return small.uci_har() | {
        "windows": np.stack(windows),
        "subject": subject.astype(np.uint8),
        "activity": activity.astype(np.uint8),
        "experiment": subject.astype(np.uint8),
        "start": start.astype(np.int32),
        "split": (subject == 2).astype(np.uint8),
    }


def experiment(data: str, devices: int = 4) -> Experiment:
    return Experiment.parse(
        f'[model]\nbuild = "sine_mlp"\n[data]\n{data}\n[strategy]\nname = "fedavg"\n'
        f"[fleet]\ndevices = {devices}\nheld_out = 1\n",
        "mine.toml",
    )


def test_an_experiment_declares_a_front_end(folder: Path) -> None:
    task = experiment(f'source = "spoken-digits"\n{FRONT_END}').build_task()
    assert isinstance(task, LabelSkew)
    expected = MFCC.prepare(DATA_SETS["spoken-digits"].recordings())
    np.testing.assert_array_equal(task.data.x, expected.x)


def test_log_mel_has_one_feature_a_band(folder: Path) -> None:
    declared = 'frontend = {kind = "log-mel", clip = "500ms", mels = 20}'
    task = experiment(f'source = "spoken-digits"\n{declared}').build_task()
    # (4000 - 320) / 160 + 1 = 24 frames of 20 bands.
    assert task.features == 24 * 20


def test_without_a_front_end_there_are_the_samples_themselves(folder: Path) -> None:
    assert experiment('source = "spoken-digits"').build_task().features == 8000


def test_windows_of_another_length_are_cut_from_the_series_of_har(folder: Path) -> None:
    declared = experiment('source = "uci-har"\nwindow = {length = 192, hop = 128}', 2)
    data: Labelled = declared.build_task().data  # type: ignore[attr-defined]
    # Each subject: (320 - 192) / 128 + 1 = 2 windows of activity 0, and 1 of 192 of activity 1.
    assert data.features == 192 * 6
    assert data.label.tolist() == [0, 0, 1] * 2


def test_the_windows_of_har_come_again_from_its_series(folder: Path) -> None:
    read, recorded = DATA_SETS["uci-har"].load(), DATA_SETS["uci-har"].recordings()
    assert np.diff(recorded.offsets).tolist() == [320, 192, 128] * 2
    again = Windows(128, 64).prepare(recorded)
    for column in ("x", "label", "client", "split"):
        np.testing.assert_array_equal(getattr(again, column), getattr(read, column))


def test_windows_that_do_not_agree_are_damaged(folder: Path) -> None:
    arrays = har_of_series()
    arrays["windows"][1, 3, 2] += 1
    small.write(folder / "uci_har.npz", arrays)
    with pytest.raises(DataError, match=r"uci_har\.npz: windows that begin 64 samples apart"):
        DATA_SETS["uci-har"].recordings()


def test_an_experiment_with_a_front_end_is_written_and_read_again(folder: Path) -> None:
    one = experiment(f'source = "spoken-digits"\n{FRONT_END}')
    again = Experiment.parse(one.to_toml())
    assert again.data == one.data
    assert again.digest == one.digest
    assert one.digest != one.override("data.frontend.mels=20").digest


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            'source = "sine"\n' + FRONT_END,
            r"line 5: 'frontend' and 'window' .* uci-har and spoken-dig",
        ),
        ('source = "cifar10"\n' + FRONT_END, "line 5: 'frontend' and 'window' are for sources"),
        (
            'source = "spoken-digits"\nfrontend = {kind = "mel"}',
            "line 5: data.frontend.kind = 'mel",
        ),
        ('source = "spoken-digits"\nfrontend = {hop = "1s"}', "data.frontend.kind is missing"),
        ('source = "spoken-digits"\nfrontend = "mfcc"', r"must be a table \[data.frontend\]"),
        (
            'source = "spoken-digits"\nfrontend = {kind = "mfcc", mel = 3}',
            "line 5: unknown key 'data.frontend.mel'; did you mean 'mels'",
        ),
        (
            'source = "spoken-digits"\nfrontend = {kind = "log-mel", coefficients = 3}',
            "line 5: coefficients = 3 are for a 'frontend' of kind 'mfcc'",
        ),
        (
            f'source = "uci-har"\nwindow = {{length = 128, hop = 64}}\n{FRONT_END}',
            "line 5: 'frontend' and 'window' exclude each other",
        ),
        ('source = "uci-har"\nwindow = {length = 128}', "data.window.hop is missing"),
    ],
)
def test_what_is_declared_wrongly_is_named_with_its_line(
    data: str, message: str, folder: Path
) -> None:
    with pytest.raises(ExperimentError, match=message):
        experiment(data).build_task()


@pytest.mark.data
def test_the_windows_of_the_real_har_come_again_from_its_series(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDTINY_DATA", str(data_dir))
    row = DATA_SETS["uci-har"]
    declared: Preparation = Windows(128, 64)
    again, read = declared.prepare(row.recordings()), row.load()
    np.testing.assert_array_equal(again.x, read.x)
    np.testing.assert_array_equal(again.label, read.label)

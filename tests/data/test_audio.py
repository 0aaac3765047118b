"""The front end: the same bits in C and in NumPy, near an independent statement in float64."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from fedtiny.data.audio import Spectrum
from fedtiny.engine import native
from fedtiny.engine.runtime import build
from fedtiny.errors import ExperimentError

Array = npt.NDArray[Any]

VARIANTS = {
    "O0": ["-O0"],
    "native": ["-O3", "-march=native"],
    "small": ["-O2", "-DFT_SMALL"],
    "undefined": ["-O1", "-fsanitize=undefined,float-cast-overflow", "-fno-sanitize-recover"],
}
WORDS = Spectrum(16_000, 640, 40, 10, 20.0, 4000.0)
DIGITS = Spectrum(8000, 320, 40, 0, 20.0, 4000.0)


class CSpectrum(ctypes.Structure):
    _fields_ = (
        ("rate_hz", ctypes.c_uint32), ("window", ctypes.c_uint32), ("mels", ctypes.c_uint32),
        ("coefficients", ctypes.c_uint32), ("low_hz", ctypes.c_float), ("high_hz", ctypes.c_float),
    )  # fmt: skip


@pytest.fixture(scope="module", params=[*VARIANTS, "library"])
def audio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The C in several forms, the last one being the runtime that is installed."""
    if request.param == "library":
        loaded = native.library()
    else:
        library = tmp_path_factory.mktemp("audio") / f"{request.param}.so"
        command = [*build.compiler(), *build.FLAGS, "-shared", *VARIANTS[request.param]]
        source = [str(build.HERE / "ft_audio.c"), "-lm", "-o", str(library)]
        subprocess.run([*command, *source], check=True)
        loaded = ctypes.CDLL(str(library))
    for name in ("table", "scratch", "frame"):
        getattr(loaded, f"ft_audio_{name}_floats").restype = ctypes.c_size_t
    return loaded


def floats(count: int) -> tuple[Array, ctypes.c_void_p]:
    array = np.full(count, np.nan, np.float32)
    return array, ctypes.c_void_p(array.ctypes.data)


def in_c(audio: ctypes.CDLL, spectrum: Spectrum, samples: Array) -> Array:
    """Frame by frame; what lies behind each memory must stay as it is."""
    struct = CSpectrum(*(getattr(spectrum, name) for name, _ in CSpectrum._fields_))
    counts = [
        getattr(audio, f"ft_audio_{name}_floats")(ctypes.byref(struct))
        for name in ("table", "scratch", "frame")
    ]
    memory = [floats(count + 1) for count in counts]
    (_, tables), (_, scratch), (frame, frame_at) = memory
    assert audio.ft_audio_tables(ctypes.byref(struct), tables) == 1
    out = np.empty((len(samples), spectrum.width), np.float32)
    for row, one in zip(out, samples, strict=True):
        at = ctypes.c_void_p(one.ctypes.data)
        audio.ft_audio_frame(ctypes.byref(struct), tables, at, scratch, frame_at)
        row[:] = frame[:-1]
    assert all(np.isnan(array[-1]) and not np.isnan(array[:-1]).any() for array, _ in memory)
    return out


def is_refused(audio: ctypes.CDLL, figures: CSpectrum) -> bool:
    count = audio.ft_audio_table_floats(ctypes.byref(figures))
    memory, at = floats(count)
    return not memory.size or not audio.ft_audio_tables(ctypes.byref(figures), at)


def exact(spectrum: Spectrum, samples: Array) -> Array:
    """The definition in float64, with NumPy's transform and one line for each step."""
    n, points, m = spectrum.window, spectrum.transform, np.arange(spectrum.mels)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
    power = np.abs(np.fft.rfft(samples.astype(np.float64) * hann, points)) ** 2
    mel = np.log1p(np.fft.rfftfreq(points, 1 / spectrum.rate_hz) / 700)
    low, high = np.log1p(np.array([spectrum.low_hz, spectrum.high_hz]) / 700)
    centre = low + (high - low) / (spectrum.mels + 1) * (m + 1)
    triangle = np.maximum(0, 1 - np.abs(mel[:, None] - centre) * (spectrum.mels + 1) / (high - low))
    energy = np.log(power @ triangle + 1e-6)
    if not spectrum.coefficients:
        return np.asarray(energy)
    from scipy.fft import dct  # type: ignore[import-untyped]

    return np.asarray(dct(energy, type=2, norm="ortho"))[:, : spectrum.coefficients]


def noise(frames: int, window: int, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).normal(size=(frames, window)) * 0.1).astype(np.float32)


# ---- one meaning -----------------------------------------------------------------------------


@pytest.mark.parametrize("spectrum", [WORDS, DIGITS], ids=["mfcc", "log-mel"])
def test_c_and_numpy_give_the_same_bits(audio: ctypes.CDLL, spectrum: Spectrum) -> None:
    samples = noise(40, spectrum.window)
    samples[0] = 0.0
    samples[1] = np.sin(np.arange(spectrum.window))
    found = in_c(audio, spectrum, samples)
    expected = spectrum.frames(samples)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@settings(max_examples=60)
@given(
    window=st.integers(2, 700),
    mels=st.integers(1, 12),
    coefficients=st.integers(0, 12),
    rate_hz=st.integers(200, 48_000),
    low=st.floats(0, 0.2),
    seed=st.integers(0, 99),
)
def test_every_front_end_is_the_same_in_c_or_refused_by_both(
    audio: ctypes.CDLL, window: int, mels: int, coefficients: int, rate_hz: int, low: float,
    seed: int,
) -> None:  # fmt: skip
    low_hz, high_hz = float(np.float32(low * rate_hz)), float(np.float32(0.45 * rate_hz))
    try:
        spectrum = Spectrum(rate_hz, window, mels, coefficients, low_hz, high_hz)
    except ExperimentError:
        assert is_refused(audio, CSpectrum(rate_hz, window, mels, coefficients, low_hz, high_hz))
        return
    samples = noise(3, window, seed)
    np.testing.assert_array_equal(
        in_c(audio, spectrum, samples).view(np.uint32), spectrum.frames(samples).view(np.uint32)
    )


@pytest.mark.parametrize(
    "spectrum", [WORDS, DIGITS, Spectrum(48_000, 1200, 64, 20, 0.0, 24_000.0)], ids=str
)
def test_frames_are_near_the_exact_ones(spectrum: Spectrum) -> None:
    samples = noise(30, spectrum.window, 1)
    np.testing.assert_allclose(spectrum.frames(samples), exact(spectrum, samples), atol=1e-4)


def test_silence_is_the_least_energy() -> None:
    # log(1e-6) in every band, so that a DCT has it in its first coefficient alone: sqrt(40) times.
    silent = np.zeros((1, 640), np.float32)
    np.testing.assert_allclose(
        WORDS.frames(silent)[0], [np.sqrt(40) * np.log(1e-6), *[0.0] * 9], atol=1e-4
    )


def test_a_tone_is_loudest_in_the_band_around_it() -> None:
    # 1 kHz stands at (m(1000) - m(20)) / (m(4000) - m(20)) * 41 = 18.6: bands 17 and 18 share it.
    tone = np.sin(2 * np.pi * 1000 / 8000 * np.arange(320)).astype(np.float32)
    energy = DIGITS.frames(tone[None])[0]
    assert set(np.argsort(energy)[-2:].tolist()) == {17, 18}


def test_many_frames_are_as_one_by_one() -> None:
    samples = noise(1100, 320, 2)  # more than are taken at a time
    apart = [DIGITS.frames(samples[i : i + 1])[0] for i in (0, 1023, 1024, 1099)]
    np.testing.assert_array_equal(DIGITS.frames(samples)[[0, 1023, 1024, 1099]], apart)


# ---- what cannot be --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ((8000, 1, 40, 10, 20.0, 4000.0), "a window of 1 samples"),
        ((8000, 9000, 40, 10, 20.0, 4000.0), "window of 9,000 samples.* 2 to 8,192"),
        ((8000, 320, 300, 10, 20.0, 4000.0), "mels = 300.* 1 to 256"),
        ((8000, 320, 40, 41, 20.0, 4000.0), "coefficients = 41 must be at most mels = 40"),
        ((8000, 320, 40, 10, 20.0, 4001.0), "high_hz = 4001 must ascend within 0 and 4000, half"),
        ((8000, 320, 40, 10, 300.0, 300.0), "low_hz = 300"),
        ((8000, 64, 40, 10, 20.0, 4000.0), "triangle 0 holds no frequency of the 64-point"),
    ],
)
def test_an_impossible_front_end_is_refused_with_its_numbers(
    figures: tuple[Any, ...], message: str, audio: ctypes.CDLL
) -> None:
    with pytest.raises(ExperimentError, match=message):
        Spectrum(*figures)
    assert is_refused(audio, CSpectrum(*figures))


# ---- real sound ------------------------------------------------------------------------------


@pytest.mark.data
def test_the_mfcc_of_raw_words_are_those_of_the_data_set(data_dir: Path) -> None:
    """Those of the file were made from 16 kHz; the raw clips are at 8 kHz, which a shift tells."""
    with np.load(data_dir / "speech_words.npz") as a:
        raw = a["wave_8k"].astype(np.float32) * np.float32(2.0**-15)
        made = a["mfcc"][a["wave_clip"]] * a["mfcc_scale"]
    views = sliding_window_view(raw, 320, axis=1)[:, ::160]
    mfcc = Spectrum(8000, 320, 40, 10, 20.0, 4000.0).frames(views.reshape(-1, 320))
    for c in range(10):
        assert np.corrcoef(made[..., c].ravel(), mfcc[:, c])[0, 1] > 0.997

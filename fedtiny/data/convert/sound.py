"""The free spoken digits and Speech Commands as they are published."""

from __future__ import annotations

import re
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.data.audio import Spectrum
from fedtiny.data.convert.published import Watch, files, inside
from fedtiny.data.readers import FSDD_HZ
from fedtiny.data.recordings import framed
from fedtiny.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_MOST_SECONDS, _SAMPLE_BYTES = 60, 2

# ---- spoken digits ---------------------------------------------------------------------------

_DIGIT = re.compile(r"(?P<digit>\d)_(?P<speaker>\w+)_(?P<index>\d{1,2})\.wav")


def spoken_digits(folder: Path, watch: Watch) -> dict[str, Array]:
    """The samples as they are, one recording behind the other."""
    place = inside(folder, "recordings", ".")
    paths = files(place, "*.wav")
    named = [_matched(_DIGIT, path, "DIGIT_SPEAKER_INDEX.wav") for path in paths]
    clips = [wav(path, FSDD_HZ) for path in watch(paths)]
    speakers = sorted({match["speaker"] for match in named})
    return {
        "samples": np.concatenate(clips),
        "offsets": np.cumsum([0, *map(len, clips)]),
        "digit": np.array([int(match["digit"]) for match in named], np.uint8),
        "speaker": np.array([speakers.index(match["speaker"]) for match in named], np.uint8),
        "index": np.array([int(match["index"]) for match in named], np.uint8),
        "speaker_names": np.array(speakers),
        "sample_rate": np.array(FSDD_HZ, np.int32),
    }


# ---- speech words ----------------------------------------------------------------------------

_WORD = re.compile(r"(?P<speaker>[0-9a-f]+)_nohash_(?P<utterance>\d{1,2})\.wav")
WORDS = Spectrum(16_000, 640, 40, 10, 20.0, 4000.0)
_HOP, _MOST_SPEAKERS, _MOST_WORDS = 320, 2**15 - 1, 2**8 - 1


def speech_words(folder: Path, watch: Watch) -> dict[str, Array]:
    """MFCC of one second: 49 frames x 10 coefficients, each coefficient in 8 bits."""
    # Speech Commands keeps its noises in a folder whose name begins with an underscore.
    paths = files(folder, "[!_]*/*.wav")
    named = [_matched(_WORD, path, "SPEAKER_nohash_UTTERANCE.wav") for path in paths]
    words = sorted({path.parent.name for path in paths})
    speakers = sorted({match["speaker"] for match in named})
    if len(speakers) > _MOST_SPEAKERS or len(words) > _MOST_WORDS:
        raise DataError(
            f"{folder} has {len(speakers):,} speakers and {len(words):,} words; at most "
            f"{_MOST_SPEAKERS:,} and {_MOST_WORDS} can be told apart"
        )
    number = {speaker: at for at, speaker in enumerate(speakers)}
    mfcc = np.concatenate([_mfcc(path) for path in watch(paths)])
    scale = np.maximum(np.abs(mfcc).max(axis=(0, 1)), np.float32(1e-6)) / np.float32(127.0)
    return {
        "mfcc": np.rint(mfcc / scale).astype(np.int8),
        "mfcc_scale": scale,
        "word": np.array([words.index(path.parent.name) for path in paths], np.uint8),
        "speaker": np.array([number[match["speaker"]] for match in named], np.int16),
        "utterance": np.array([int(match["utterance"]) for match in named], np.uint8),
        "word_names": np.array(words),
        "speaker_hash": np.array(speakers),
    }


def _mfcc(path: Path) -> Array:
    second = np.zeros((1, WORDS.rate_hz), np.float32)
    clip = wav(path, WORDS.rate_hz)[: WORDS.rate_hz]
    second[0, : len(clip)] = clip * np.float32(2.0**-15)
    return framed(WORDS, second, _HOP)


# ---- what both share -------------------------------------------------------------------------


def _matched(pattern: re.Pattern[str], path: Path, form: str) -> re.Match[str]:
    match = pattern.fullmatch(path.name)
    if match is None:
        raise DataError(f"{path} is not named {form}")
    return match


def wav(path: Path, rate_hz: int) -> Array:
    """The samples of a mono file of 16 bits at that rate, a minute at most: int16 [n]."""
    try:
        with wave.open(str(path), "rb") as file:
            channels, sample_bytes, rate, count = file.getparams()[:4]
            if (channels, sample_bytes, rate) != (1, _SAMPLE_BYTES, rate_hz):
                raise DataError(
                    f"{path} has {channels} channels of {8 * sample_bytes} bits at {rate:,} Hz; it "
                    f"must have 1 of {8 * _SAMPLE_BYTES} bits at {rate_hz:,} Hz"
                )
            if not 1 <= count <= _MOST_SECONDS * rate_hz:
                raise DataError(
                    f"{path} claims {count:,} samples; it must be 1 to {_MOST_SECONDS * rate_hz:,}"
                )
            samples = file.readframes(count)
    except (wave.Error, EOFError, OSError) as error:
        raise DataError(f"{path} is damaged: {error or 'it ends too early'}") from None
    if len(samples) != _SAMPLE_BYTES * count:
        raise DataError(
            f"{path} says {count:,} samples but holds {len(samples) // _SAMPLE_BYTES:,}"
        )
    return np.frombuffer(samples, "<i2")

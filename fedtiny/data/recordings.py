"""Raw series of samples, and the two ways to make rows of them that an experiment declares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fedtiny.data.audio import Spectrum
from fedtiny.data.labelled import TRAINING, Labelled
from fedtiny.errors import DataError, ExperimentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from fedtiny.tensors import Float32, Int32, Int64

    Array = npt.NDArray[Any]

_CLIPS = 64  # at a time: their frames overlap, and are copied apart


@dataclass(frozen=True, slots=True, eq=False)
class Recordings:
    """Series in memory, one behind the other; equal only to itself.

    Attributes:
        samples: int16 [total, channels].
        offsets: int64 [n + 1]: series i is ``samples[offsets[i] : offsets[i + 1]]``.
        label: int32 [n].
        client: int32 [n]; the series of a client are in the order of time.
        split: uint8 [n].
        class_names: One a class.
        rate_hz: Samples in a second.
    """

    samples: npt.NDArray[np.int16]
    offsets: Int64
    label: Int32
    client: Int32
    split: npt.NDArray[np.uint8]
    class_names: tuple[str, ...]
    rate_hz: int

    def clips(self, length: int) -> Float32:
        """The first channel in [-1, 1]: float32 [n, length], each cut, or followed by silence."""
        out = np.zeros((len(self.label), length), np.float32)
        for row, begin, end in zip(out, self.offsets, self.offsets[1:], strict=False):
            clip = self.samples[begin : min(end, begin + length), 0]
            row[: len(clip)] = clip * np.float32(2.0**-15)
        return out


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """Sound as log-mel energies, or with ``coefficients`` as MFCC, standardised in training.

    Frames of ``window_s`` begin every ``hop_s`` in the first ``clip_s`` of a recording.
    """

    window_s: float
    hop_s: float
    clip_s: float
    mels: int
    coefficients: int
    low_hz: float
    high_hz: float

    def prepare(self, sound: Recordings) -> Labelled:
        """One row a recording: frame by frame, each column of a frame standardised."""
        if sound.samples.shape[1] != 1:
            raise ExperimentError(
                f"'frontend' is for sound, which has one channel; these recordings have "
                f"{sound.samples.shape[1]}: declare a 'window' instead"
            )
        window, hop, length = (
            round(s * sound.rate_hz) for s in (self.window_s, self.hop_s, self.clip_s)
        )
        if not 1 <= hop <= length or length < window:
            raise ExperimentError(
                f"'frontend': at {sound.rate_hz:,} Hz window = {window:,}, hop = {hop:,} and "
                f"clip = {length:,} samples; the hop must be 1 or more, and the clip hold a window"
            )
        spectrum = Spectrum(
            sound.rate_hz, window, self.mels, self.coefficients, self.low_hz, self.high_hz
        )
        x = framed(spectrum, sound.clips(length), hop)
        return _labelled(sound, standardised(x, sound.split), np.arange(len(x)), False)


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of ``length`` samples, one every ``hop``, each channel standardised in training."""

    length: int
    hop: int

    def prepare(self, series: Recordings) -> Labelled:
        """The windows of each series in turn; one too short for a window gives none."""
        counts = np.maximum(0, (np.diff(series.offsets) - self.length) // self.hop + 1)
        if not counts.any():
            raise DataError(
                f"'window': length = {self.length:,}, but the longest series has "
                f"{np.diff(series.offsets).max():,} samples; lower length"
            )
        windows = np.concatenate([*self._cut(series)])
        of = np.repeat(np.arange(len(counts)), counts)
        x = standardised(windows, series.split[of])
        return _labelled(series, x, of, overlapping=self.hop < self.length)

    def _cut(self, series: Recordings) -> Iterator[Array]:
        for begin, end in zip(series.offsets, series.offsets[1:], strict=False):
            if end - begin >= self.length:
                views = sliding_window_view(series.samples[begin:end], self.length, axis=0)
                yield views[:: self.hop].swapaxes(1, 2)


Preparation = FrontEnd | Windows


def framed(spectrum: Spectrum, clips: Float32, hop: int) -> Float32:
    """float32 [n, frames, width] of clips [n, samples]."""
    frames = (clips.shape[1] - spectrum.window) // hop + 1
    out = np.empty((len(clips), frames, spectrum.width), np.float32)
    for at in range(0, len(clips), _CLIPS):
        views = sliding_window_view(clips[at : at + _CLIPS], spectrum.window, axis=1)[:, ::hop]
        made = spectrum.frames(views.reshape(-1, spectrum.window))
        out[at : at + _CLIPS] = made.reshape(-1, frames, spectrum.width)
    return out


_STEPS = 4096.0  # in one unit of a feature, when its moments are taken


def standardised(values: Array, split: Array) -> Float32:
    """float32 [n, ...]: less the training mean of the last axis, over its deviation."""
    training = values[split == TRAINING].reshape(-1, values.shape[-1])
    if not len(training):
        raise DataError("it has no training samples")
    # Sums of integers are exact: every machine has the same mean and deviation.
    unit = 1.0 if values.dtype.kind == "i" else _STEPS
    whole = np.rint(training * np.float32(unit)).astype(np.int64) if unit > 1 else training
    total, squares = whole.sum(axis=0, dtype=np.int64), (whole.astype(np.int64) ** 2).sum(axis=0)
    mean = total / len(whole)
    deviation = np.sqrt(squares / len(whole) - mean**2)
    if not (deviation > 0).all():
        raise DataError(f"channels {np.flatnonzero(~(deviation > 0)).tolist()} never change")
    x: Float32 = (values - np.float32(mean / unit)) / np.float32(deviation / unit)
    return x.reshape(len(x), -1)


def _labelled(recordings: Recordings, x: Float32, of: Int64, overlapping: bool) -> Labelled:
    return Labelled(
        x=x,
        label=recordings.label[of],
        client=recordings.client[of],
        split=recordings.split[of],
        class_names=recordings.class_names,
        overlapping=overlapping,
    )

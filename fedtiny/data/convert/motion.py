"""UCI HAR from the raw signals of HAPT, as they are published."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fedtiny.data.convert.published import Watch, inside, read
from fedtiny.data.labelled import TEST, TRAINING
from fedtiny.data.readers import HAR_HOP
from fedtiny.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_RATE_HZ, _CUTOFF_HZ, _WINDOW = 50, 20, 128
_SCALE = np.array([1e-4] * 3 + [2.5e-4] * 3, np.float32)  # g, and rad/s, of one step
_TEST_SUBJECTS = (2, 4, 9, 10, 12, 13, 18, 20, 24)
_ACTIVITIES = (
    "WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING",
    "STAND_TO_SIT", "SIT_TO_STAND", "SIT_TO_LIE", "LIE_TO_SIT", "STAND_TO_LIE", "LIE_TO_STAND",
)  # fmt: skip
_MOST_BYTES = 1 << 25  # of one text file; those of HAPT have 3 MB


def uci_har(folder: Path, watch: Watch) -> dict[str, Array]:
    """Windows of 128 with half overlap inside each labelled stretch of an experiment."""
    place = inside(folder, "labels.txt", "RawData/labels.txt").parent
    labels = _labels(place / "labels.txt")
    windows: list[Array] = []
    rows: list[tuple[int, int, int, int]] = []
    for experiment, user in watch([tuple(pair) for pair in np.unique(labels[:, :2], axis=0)]):
        series = _series(place, int(experiment), int(user))
        mine = labels[(labels[:, 0] == experiment) & (labels[:, 1] == user)]
        for *_, activity, first, last in mine[np.argsort(mine[:, 3], kind="stable")].tolist():
            if last > len(series):
                raise DataError(
                    f"{place / 'labels.txt'}: experiment {experiment} is labelled up to sample "
                    f"{last:,}; it has {len(series):,}"
                )
            for start in range(first - 1, last - _WINDOW + 1, HAR_HOP):
                windows.append(series[start : start + _WINDOW])
                rows.append((user, activity - 1, experiment, start))
    if not rows:
        raise DataError(f"{place / 'labels.txt'} labels no stretch of {_WINDOW} samples or more")
    subject, activity, experiment, start = np.array(rows).T
    return {
        "windows": np.stack(windows),
        "scale": _SCALE,
        "subject": subject.astype(np.uint8),
        "activity": activity.astype(np.uint8),
        "experiment": experiment.astype(np.uint8),
        "start": start.astype(np.int32),
        "split": np.where(np.isin(subject, _TEST_SUBJECTS), TEST, TRAINING).astype(np.uint8),
        "activity_names": np.array(_ACTIVITIES),
        "sample_rate": np.array(_RATE_HZ, np.int32),
    }


def _labels(path: Path) -> Array:
    """int [n, 5]: experiment, user, activity, first and last sample, counted from 1."""
    labels = _numbers(path, 5)
    experiment, user, activity, first, last = labels.T
    wrong = (
        (labels != np.floor(labels)).any(axis=1) | (labels > 2**31 - 1).any(axis=1)
        | (np.minimum(experiment, user) < 1) | (np.maximum(experiment, user) > 255)
        | (activity < 1) | (activity > len(_ACTIVITIES)) | (first < 1) | (last < first)
    )  # fmt: skip
    for row in np.flatnonzero(wrong)[:1]:
        raise DataError(
            f"{path}, row {row + 1}: {labels[row].tolist()} is not experiment and user (1 to 255), "
            f"activity (1 to {len(_ACTIVITIES)}), first and last sample"
        )
    return labels.astype(np.int64)


def _series(place: Path, experiment: int, user: int) -> Array:
    """int16 [samples, 6] of one experiment, without noise."""
    names = [f"{sensor}_exp{experiment:02}_user{user:02}.txt" for sensor in ("acc", "gyro")]
    signals = [_numbers(inside(place, name), 3) for name in names]
    if len({len(signal) for signal in signals}) > 1:
        lengths = " and ".join(f"{len(signal):,}" for signal in signals)
        raise DataError(f"{place}: {' and '.join(names)} have {lengths} samples")
    steps = np.rint(_smooth(np.concatenate(signals, axis=1)) / _SCALE)
    if np.abs(steps).max() >= 2**15:
        most = np.abs(steps).max(axis=0) * _SCALE
        raise DataError(
            f"{place}: {' and '.join(names)} go up to {most.round(2).tolist()}; "
            f"{(_SCALE * 2**15).round(2).tolist()} (g, rad/s) can be kept"
        )
    return steps.astype(np.int16)


def _smooth(x: Array) -> Array:
    """A median of three, then a third-order Butterworth that a device could run as well."""
    try:
        from scipy.signal import butter, sosfilt, sosfilt_zi  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError("SciPy is not installed: pip install 'fedtiny[simulate]'") from error
    padded = np.pad(x, ((1, 1), (0, 0)), mode="edge")
    median = np.median(sliding_window_view(padded, 3, axis=0), axis=-1)
    sections = butter(3, _CUTOFF_HZ, fs=_RATE_HZ, output="sos")
    settled = sosfilt_zi(sections)[:, :, None] * median[0]
    smooth: Array = sosfilt(sections, median, axis=0, zi=settled)[0]
    return smooth


def _numbers(path: Path, columns: int) -> Array:
    """float64 [n, columns] of a text file."""
    text = read(path, _MOST_BYTES)
    try:
        numbers = np.loadtxt(io.BytesIO(text), ndmin=2)
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if not numbers.size or numbers.shape[1] != columns:
        raise DataError(f"{path} is {numbers.shape}; it must be rows of {columns} numbers")
    if not np.isfinite(numbers).all():
        row = int(np.flatnonzero(~np.isfinite(numbers).all(axis=1))[0]) + 1
        raise DataError(f"{path}, row {row}: {numbers[row - 1].tolist()} is not finite")
    return numbers

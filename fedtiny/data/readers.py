"""From the files of the data folder to `Labelled`: one reader a file.

Images are rows, columns, colours in turn, in [0, 1]. A reader raises DataError for what it cannot
use; the message goes on from the file's name.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.data.labelled import NO_CLIENT, TEST, TRAINING, Labelled
from fedtiny.data.npz import array_names, read_arrays
from fedtiny.data.recordings import Recordings, standardised
from fedtiny.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedtiny.tensors import Float32

    Array = npt.NDArray[Any]


# ---- images ----------------------------------------------------------------------------------

DRAWERS = 20


def read_omniglot(path: Path) -> Labelled:
    """Characters by hand, 28 x 28, ink 1; a client is one drawer of one alphabet."""
    forms = {"images": "u1 n 28 28", "alphabet": "u1 n", "character": "i2 n", "drawer": "u1 n"}
    a = read_arrays(path, forms | {"split": "u1 n", "alphabet_names": "U a"})
    character, alphabet = a["character"].astype(np.int32), a["alphabet"].astype(np.int32)
    if not 0 <= character.min() <= character.max() < len(character):
        raise DataError(f"character is {character.min()} to {character.max()}")
    if alphabet.max() >= len(a["alphabet_names"]) or a["drawer"].max() >= DRAWERS:
        raise DataError(
            f"alphabet goes up to {alphabet.max()} and drawer to {a['drawer'].max()}; there are "
            f"{len(a['alphabet_names'])} alphabets and {DRAWERS} drawers"
        )
    of_class = np.full(character.max() + 1, -1, np.int32)
    of_class[character] = alphabet
    if (of_class < 0).any() or (of_class[character] != alphabet).any():
        raise DataError("a character has no image, or is in two alphabets")
    return Labelled(
        x=_pixels(a["images"]),
        label=character,
        client=alphabet * DRAWERS + a["drawer"],
        split=a["split"],
        class_names=tuple(f"{a['alphabet_names'][k]} {c}" for c, k in enumerate(of_class)),
        superclass=of_class,
    )


def read_fashion_mnist(path: Path) -> Labelled:
    """Grey pictures of clothes, 28 x 28."""
    forms = {"images": "u1 n 28 28", "label": "u1 n", "split": "u1 n", "class_names": "U c"}
    a = read_arrays(path, forms)
    return _without_clients(_pixels(a["images"]), a)


def read_cifar10(path: Path) -> Labelled:
    """Colour pictures, 32 x 32 x 3, kept as bytes or as JPEG."""
    forms = {"label": "u1 n", "split": "u1 n", "class_names": "U c"}
    if "images" in array_names(path):
        a = read_arrays(path, {"images": "u1 n 32 32 3", **forms})
        return _without_clients(_pixels(a["images"]), a)
    a = read_arrays(path, {"jpeg": "u1 b", "offsets": "i8 m", **forms})
    pictures = _cut(a["jpeg"], a["offsets"], len(a["label"]))
    return _without_clients(_pixels(np.stack([*map(_decoded, range(len(pictures)), pictures)])), a)


def _decoded(index: int, jpeg: Array) -> Array:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            "its pictures are JPEG, which Pillow decodes; Pillow is not installed: "
            "pip install 'fedtiny[simulate]'"
        ) from error
    try:
        # The size is known before the pixels are unpacked.
        with Image.open(io.BytesIO(jpeg.tobytes()), formats=["JPEG"]) as picture:
            if picture.size != (32, 32) or picture.mode != "RGB":
                raise DataError(
                    f"picture {index} is {picture.size} {picture.mode}, not 32 x 32 RGB"
                )
            return np.asarray(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"picture {index} is damaged: {error}") from None


def _pixels(images: Array) -> Float32:
    x: Float32 = np.divide(images.reshape(len(images), -1), 255.0, dtype=np.float32)
    return x


def _without_clients(x: Float32, a: dict[str, Array]) -> Labelled:
    label = a["label"].astype(np.int32)
    client = np.full(len(label), NO_CLIENT, np.int32)
    return Labelled(x, label, client, a["split"], _names(a["class_names"]))


# ---- motion and speech -----------------------------------------------------------------------

HAR_ACTIVITIES = 6


HAR_HOP = 64


def read_uci_har(path: Path) -> Labelled:
    """Windows of 128 x 6 (acceleration, rotation) of 30 people in the six basic activities.

    Each channel is standardised by the training subjects.
    """
    forms = {"windows": "i2 n 128 6", "subject": "u1 n", "activity": "u1 n", "split": "u1 n"}
    a = read_arrays(path, forms | {"activity_names": "U a"})
    basic = a["activity"] < HAR_ACTIVITIES
    split = a["split"][basic]
    return Labelled(
        x=standardised(a["windows"][basic], split),
        label=a["activity"][basic].astype(np.int32),
        client=a["subject"][basic].astype(np.int32),
        split=split,
        class_names=_names(a["activity_names"][:HAR_ACTIVITIES]),
        overlapping=True,
    )


def record_uci_har(path: Path) -> Recordings:
    """The series that the windows were cut from: one for each stretch of one basic activity."""
    forms = {"windows": "i2 n 128 6", "subject": "u1 n", "activity": "u1 n", "split": "u1 n"}
    forms |= {"experiment": "u1 n", "start": "i4 n", "activity_names": "U a"}
    a = read_arrays(path, forms)
    names = _names(a.pop("activity_names")[:HAR_ACTIVITIES])
    basic = a["activity"] < HAR_ACTIVITIES
    a = {name: column[basic] for name, column in a.items()}
    goes_on = np.concatenate([[False], np.diff(a["start"]) == HAR_HOP])
    for column in ("experiment", "activity", "subject"):
        goes_on[1:] &= a[column][1:] == a[column][:-1]
    shared = goes_on[1:]
    if (a["windows"][:-1][shared, HAR_HOP:] != a["windows"][1:][shared, :HAR_HOP]).any():
        raise DataError(f"windows that begin {HAR_HOP} samples apart differ where they overlap")
    new = np.ones(a["windows"].shape[:2], bool)
    new[goes_on, :HAR_HOP] = False
    first = np.flatnonzero(~goes_on)
    before = np.concatenate([[0], np.cumsum(new.sum(axis=1))])
    return Recordings(
        samples=a["windows"][new],
        offsets=before[[*first, len(goes_on)]],
        label=a["activity"][first].astype(np.int32),
        client=a["subject"][first].astype(np.int32),
        split=a["split"][first],
        class_names=names,
        rate_hz=50,
    )


def read_speech_words(path: Path) -> Labelled:
    """MFCC of words, 49 frames x 10 coefficients, by speaker.

    Each coefficient is standardised by the training speakers. Test speakers are those of Speech
    Commands itself (Warden 2018).
    """
    forms = {"mfcc": "i1 n 49 10", "word": "u1 n", "speaker": "i2 n"}
    a = read_arrays(path, forms | {"word_names": "U w", "speaker_hash": "U s"})
    speaker = a["speaker"].astype(np.int32)
    if not 0 <= speaker.min() <= speaker.max() < len(a["speaker_hash"]):
        raise DataError(
            f"speaker is {speaker.min()} to {speaker.max()}; {len(a['speaker_hash'])} have a hash"
        )
    of_speaker = np.array([_is_test_speaker(name) for name in a["speaker_hash"]], np.uint8)
    split = of_speaker[speaker]
    return Labelled(
        x=standardised(a["mfcc"], split),
        label=a["word"].astype(np.int32),
        client=speaker,
        split=split,
        class_names=_names(a["word_names"]),
    )


_LARGEST = 2**27 - 1


def _is_test_speaker(speaker_hash: str) -> bool:
    """The rule by which Speech Commands keeps a tenth of the speakers for the test."""
    digest = int(hashlib.sha1(speaker_hash.encode(), usedforsecurity=False).hexdigest(), 16)
    return 10.0 <= digest % (_LARGEST + 1) * (100.0 / _LARGEST) < 20.0


FSDD_HZ = 8000


def read_fsdd(path: Path) -> Labelled:
    """Spoken digits at 8 kHz, in [-1, 1]: the first second of each clip, and then silence."""
    sound = record_fsdd(path)
    x, names = sound.clips(FSDD_HZ), sound.class_names
    return Labelled(x, sound.label, sound.client, sound.split, names)


def record_fsdd(path: Path) -> Recordings:
    """Spoken digits, as long as they are.

    The first five clips of each digit and speaker are the test, as its authors say.
    """
    forms = {"samples": "i2 s", "offsets": "i8 m", "digit": "u1 n", "speaker": "u1 n"}
    a = read_arrays(path, forms | {"index": "u1 n", "speaker_names": "U k"})
    _cut(a["samples"], a["offsets"], len(a["digit"]))
    return Recordings(
        samples=a["samples"][:, None],
        offsets=a["offsets"],
        label=a["digit"].astype(np.int32),
        client=a["speaker"].astype(np.int32),
        split=np.where(a["index"] < 5, TEST, TRAINING).astype(np.uint8),
        class_names=tuple(map(str, range(10))),
        rate_hz=FSDD_HZ,
    )


# ---- what readers share ----------------------------------------------------------------------


def _cut(joined: Array, offsets: Array, count: int) -> list[Array]:
    """The pieces ``offsets[i]`` to ``offsets[i + 1]`` of a long array."""
    ends = len(offsets) == count + 1 and offsets[0] == 0 and offsets[-1] == len(joined)
    if not ends or (np.diff(offsets) < 1).any():
        raise DataError(
            f"offsets must be {count + 1} numbers that ascend from 0 to {len(joined)}; it has "
            f"{len(offsets)}, from {offsets[:1]} to {offsets[-1:]}"
        )
    return [joined[a:b] for a, b in itertools.pairwise(offsets)]


def _names(names: Array) -> tuple[str, ...]:
    return tuple(map(str, names))

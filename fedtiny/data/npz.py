"""The arrays of an ``.npz`` file, none of them trusted before its form has been checked."""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from fedtiny.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

MOST_BYTES = 1 << 28
"""Of one array; a file that claims more is refused before anything is unpacked."""

# What zipfile and the header parser of NumPy raise on damaged bytes.
_DAMAGE = (
    OSError, EOFError, ValueError, SyntaxError, TokenError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def array_names(path: Path) -> tuple[str, ...]:
    """The names of the arrays in a file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist())
    except _DAMAGE as error:
        raise DataError(f"it is damaged: {error}") from None


def read_arrays(path: Path, forms: Mapping[str, str]) -> dict[str, Array]:
    """The arrays that ``forms`` names; they cannot be written to.

    A form is a dtype and the sizes, such as "u1 n 28 28"; a letter stands for a size that the file
    itself decides, the same wherever the letter stands. "U" is text of any length.
    """
    sizes: dict[str, int] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _array(archive, name, form, sizes) for name, form in forms.items()}
    except _DAMAGE as error:
        raise DataError(f"it is damaged: {error}") from None


def _array(archive: zipfile.ZipFile, name: str, form: str, sizes: dict[str, int]) -> Array:
    member = f"{name}.npy"
    if member not in archive.namelist():
        raise DataError(f"it has no array {name!r}; it has {sorted(archive.namelist())}")
    claimed_bytes = archive.getinfo(member).file_size
    if claimed_bytes > MOST_BYTES:
        raise DataError(f"{name} claims {claimed_bytes:,} B; at most {MOST_BYTES:,} B are read")
    stream = io.BytesIO(archive.read(member))
    shape, by_columns, dtype = _header(stream)
    found = " ".join([dtype.str.lstrip("<|"), *map(str, shape)])
    if by_columns or not _fits(form, dtype, shape, sizes):
        known = {letter: size for letter, size in sizes.items() if letter in form.split()}
        where = f" with {known}" if known else ""
        raise DataError(f"{name} is '{found}'; it must be '{form}'{where}, row by row")
    wanted_bytes, got_bytes = math.prod(shape) * dtype.itemsize, claimed_bytes - stream.tell()
    if wanted_bytes != got_bytes:
        raise DataError(f"{name} is '{found}', {wanted_bytes:,} B, but holds {got_bytes:,} B")
    return np.frombuffer(stream.getbuffer(), dtype, offset=stream.tell()).reshape(shape)


def _header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in read:
        raise DataError(f"an array is of .npy version {version}; 1.0 and 2.0 are read")
    shape, by_columns, dtype = read[version](stream)
    return shape, by_columns, dtype


def _fits(form: str, dtype: np.dtype[Any], shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
    """Whether an array has this form; letters met for the first time take their size from it."""
    kind, *wanted = form.split()
    if dtype.kind == "O" or len(shape) != len(wanted):
        return False
    if (dtype.kind != "U") if kind == "U" else (dtype != np.dtype(f"<{kind}")):
        return False
    return all(
        size == (int(want) if want.isdigit() else sizes.setdefault(want, size))
        for want, size in zip(wanted, shape, strict=True)
    )


@contextmanager
def written(path: Path, arrays: Mapping[str, Array]) -> Iterator[Path]:
    """A file of the arrays, which gets the name ``path`` when the block ends without an error.

    Whatever happens before, not even an interrupt, leaves anything behind.
    """
    scratch = path.with_name(f"{path.name}.part")
    try:
        with scratch.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from None
    finally:
        scratch.unlink(missing_ok=True)

"""Reads arrays from .npy and .npz files; what they announce is held against their size before memory is taken."""

from __future__ import annotations

import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from cflow.data.files import INFLATION, find

__all__ = ["array_names", "map_array", "read_array"]

# Torch has no arithmetic on wide unsigned integers; the next signed type holds every value of these two.
WIDER = {"uint16": np.int32, "uint32": np.int64}
# What NumPy and zipfile raise over damaged bytes. What they would run out of memory for is checked before.
DAMAGE = (
    OSError, EOFError, ValueError, TypeError, KeyError, OverflowError, RuntimeError, SyntaxError, MemoryError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_array(path: str | os.PathLike, key: str | None = None) -> Tensor:
    """Reads an array from a .npy file, or from a .npz file (its only one, or the one named ``key``).

    Nothing is unpickled. Unsigned integers of 16 and 32 bits become the next wider signed type. The sizes that the
    file announces are compared with its own before any memory is taken for them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is neither, is damaged or has bytes after its array, holds objects or strings, or if
            ``key`` is needed or wrong.
    """
    path = find([Path(path).parent], [Path(path).name])
    try:
        if _is_npz(path):
            array = _unpacked(path, key)
        elif key is not None:
            raise _Refused(
                f"read_array({str(path)!r}, key={key!r}): a .npy file holds one unnamed array; leave out key."
            )
        else:
            with path.open("rb") as file:
                array = _filled(path, file, path.stat().st_size)
        return torch.from_numpy(np.array(array, WIDER.get(array.dtype.name, array.dtype.newbyteorder("=")), order="C"))
    except _Refused:
        raise
    except DAMAGE as error:
        raise _damaged("read_array", path, error) from error


def map_array(path: Path) -> np.ndarray:
    """Maps the array of a .npy file into memory; what is not looked at is not read.

    Raises:
        ValueError: as :func:`read_array`.
    """
    try:
        with path.open("rb") as file:
            dtype, shape, order = _header(path, file, path.stat().st_size)
            start = file.tell()
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", start, shape or (1,), order).reshape(shape, order=order)
    except _Refused:
        raise
    except DAMAGE as error:
        raise _damaged("map_array", path, error) from error


def array_names(path: Path) -> list[str]:
    """Gives the names of the arrays in a .npz file.

    Raises:
        ValueError: if it is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except DAMAGE as error:
        raise _damaged("read_array", path, error) from error


class _Refused(ValueError):
    """An error that already says what to do, distinguished from those that NumPy raises."""


def _damaged(function: str, path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{function}({str(path)!r}): not a readable .npy or .npz file of plain numbers ({str(error)[:200]}); pickled "
        f"objects are refused, save the numbers with numpy.save or numpy.savez."
    )


def _is_npz(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _header(path: Path, file: IO[bytes], size: int) -> tuple[np.dtype, tuple[int, ...], str]:
    """Reads what comes before the numbers, and checks that just as many bytes follow as these take."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"its format is of version {version}, which only tables of named columns need")
    shape, fortran, dtype = read(file)
    if dtype.kind not in "biufc" or dtype.itemsize > (16 if dtype.kind == "c" else 8):
        what = "pickled objects are refused" if dtype.hasobject else "which torch cannot hold"
        raise _Refused(f"read_array({str(path)!r}): the array is of {dtype}, {what}; save numbers of at most 64 bits.")
    expected, found = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or expected != found:
        raise ValueError(f"shape {shape} of {dtype} takes {expected:,} bytes, and {found:,} follow the header")
    return dtype, shape, "F" if fortran else "C"


def _filled(path: Path, file: IO[bytes], size: int) -> np.ndarray:
    dtype, shape, order = _header(path, file, size)
    raw = file.read()
    return np.frombuffer(raw, dtype).reshape(shape, order=order)


def _unpacked(path: Path, key: str | None) -> np.ndarray:
    """Reads one array of a .npz file."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        place = names.index(_key(path, names, key))
        member = archive.infolist()[place]
        # What a member says of itself is what zipfile goes by: it never gives more bytes than announced.
        most = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: INFLATION}.get(member.compress_type)
        if most is None:
            raise ValueError(
                f"{member.filename} is compressed by method {member.compress_type}, which NumPy never does"
            )
        if member.compress_size > size or member.file_size > most * member.compress_size:
            raise ValueError(
                f"{member.filename} announces {member.file_size:,} bytes from {member.compress_size:,}, in a file of "
                f"{size:,}"
            )
        with archive.open(member) as file:
            return _filled(path, file, member.file_size)


def _key(path: Path, names: Sequence[str], key: str | None) -> str:
    """Chooses the array of a .npz file."""
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        asked = "no key" if key is None else f"key={key!r}"
        raise _Refused(
            f"read_array({str(path)!r}): asked for {asked}, but the file holds {', '.join(names) or 'nothing'}; pass "
            f"one of these names as key=..."
        )
    return key

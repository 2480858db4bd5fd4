"""Readers of arrays from .npy and .npz files; sizes in the header are checked before memory is allocated."""

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

# Torch has no arithmetic on wide unsigned integers; the next signed type can represent all values of these two.
WIDER = {"uint16": np.int32, "uint32": np.int64}
# What NumPy and zipfile raise for damaged bytes. Sizes beyond the memory are checked earlier.
DAMAGE = (
    OSError, EOFError, ValueError, TypeError, KeyError, OverflowError, RuntimeError, SyntaxError, MemoryError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_array(path: str | os.PathLike, key: str | None = None) -> Tensor:
    """Reads an array from a .npy or .npz file.

    Nothing is unpickled. Unsigned integers of 16 and 32 bits are converted to the next wider signed type. The sizes in
    the header are compared with the size of the file before memory is allocated.

    Args:
        path: the file.
        key: the name of the array in a .npz file; not needed if it has only one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is neither .npy nor .npz, is damaged, has bytes after its array, contains objects or
            strings, or if ``key`` is needed or wrong.
    """
    path = find([Path(path).parent], [Path(path).name])
    try:
        if _is_npz(path):
            array = _unpacked(path, key)
        elif key is not None:
            raise _Refused(
                f"read_array({str(path)!r}, key={key!r}): a .npy file has one array without a name; omit key."
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
    """Maps the array of a .npy file into memory; parts that are not used are not read.

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
    """Returns the names of the arrays in a .npz file.

    Raises:
        ValueError: if it is not a .npz file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except DAMAGE as error:
        raise _damaged("read_array", path, error) from error


class _Refused(ValueError):
    """An error with a complete message, as opposed to those that NumPy raises."""


def _damaged(function: str, path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{function}({str(path)!r}): not a readable .npy or .npz file of numbers ({str(error)[:200]}); pickled objects "
        f"are refused, save numbers with numpy.save or numpy.savez."
    )


def _is_npz(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _header(path: Path, file: IO[bytes], size: int) -> tuple[np.dtype, tuple[int, ...], str]:
    """Reads the header, and checks that the size of the rest is the size of the array."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"its format version is {version}, for tables with named columns")
    shape, fortran, dtype = read(file)
    if dtype.kind not in "biufc" or dtype.itemsize > (16 if dtype.kind == "c" else 8):
        what = "pickled objects are refused" if dtype.hasobject else "which torch does not have"
        raise _Refused(f"read_array({str(path)!r}): the array is {dtype}, {what}; save numbers of at most 64 bits.")
    expected, found = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or expected != found:
        raise ValueError(f"shape {shape} of {dtype} needs {expected:,} bytes, but {found:,} follow the header")
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
        # zipfile never returns more bytes than the sizes in the member's header.
        most = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: INFLATION}.get(member.compress_type)
        if most is None:
            raise ValueError(
                f"{member.filename} is compressed by method {member.compress_type}, which NumPy does not use"
            )
        if member.compress_size > size or member.file_size > most * member.compress_size:
            raise ValueError(
                f"{member.filename} claims {member.file_size:,} bytes from {member.compress_size:,}, in a file of "
                f"{size:,}"
            )
        with archive.open(member) as file:
            return _filled(path, file, member.file_size)


def _key(path: Path, names: Sequence[str], key: str | None) -> str:
    """Chooses the array of a .npz file."""
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        asked = "" if key is None else f", key={key!r}"
        raise _Refused(
            f"read_array({str(path)!r}{asked}): the file has {', '.join(names) or 'no arrays'}; pass one of these "
            f"names as key=..."
        )
    return key

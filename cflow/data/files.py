"""Reads arrays from files: idx (the format of MNIST), npy and npz."""

from __future__ import annotations

import gzip
import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["read_array", "read_idx"]

IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# Torch has no arithmetic on wide unsigned integers; the next signed type holds every value of these two.
WIDER = {"uint16": np.int32, "uint32": np.int64}


def read_idx(path: str | os.PathLike) -> Tensor:
    """Reads one idx file, gzipped or not (known by its first bytes, not by its name).

    Shapes: those of the header. The dtype is the header's: uint8, int8, int16, int32, float32 or float64.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the header is not of an idx file, data are missing, or bytes follow the data.

    Source: LeCun, Cortes and Burges, The MNIST Database of Handwritten Digits, section "The IDX file format", 1998.
    """
    path = find([Path(path).parent], [Path(path).name])
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"read_idx({str(path)!r}): the gzip stream is damaged ({error}); get the file again."
            ) from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in IDX_TYPES or raw[3] == 0:
        raise ValueError(
            f"read_idx({str(path)!r}): the file begins with {raw[:4].hex(' ') or 'nothing'}, but an idx file begins "
            f"with 00 00, a type of {', '.join(f'{code:02x}' for code in IDX_TYPES)} and a number of dimensions; "
            f"check that it is the file you meant."
        )
    dtype, rank = np.dtype(IDX_TYPES[raw[2]]), raw[3]
    start = 4 + 4 * rank
    if len(raw) < start:
        raise ValueError(
            f"read_idx({str(path)!r}): the header announces {rank} dimensions, but the file ends after {len(raw)} "
            f"bytes; it is truncated, get it again."
        )
    shape = [int(n) for n in np.frombuffer(raw, ">u4", rank, 4)]
    expected, found = math.prod(shape) * dtype.itemsize, len(raw) - start
    if found != expected:
        fault = "it is truncated" if found < expected else f"{found - expected} trailing bytes follow the data"
        raise ValueError(
            f"read_idx({str(path)!r}): shape {shape} of {dtype.name} takes {expected} bytes, but {found} follow the "
            f"header: {fault}; get the file again."
        )
    values = np.frombuffer(raw, dtype, offset=start).reshape(shape)
    return torch.from_numpy(values.astype(dtype.newbyteorder("=")))


def read_array(path: str | os.PathLike, key: str | None = None) -> Tensor:
    """Reads an array from a .npy file, or from a .npz file (its only one, or the one named ``key``).

    Nothing is unpickled. Unsigned integers of 16 and 32 bits become the next wider signed type.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is neither, is damaged, holds objects or strings, or if ``key`` is needed or wrong.
    """
    path = find([Path(path).parent], [Path(path).name])
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                array = loaded[_key(path, loaded.files, key)]
        elif key is not None:
            raise _Refused(
                f"read_array({str(path)!r}, key={key!r}): a .npy file holds one unnamed array; leave out key."
            )
        else:
            array = loaded
    except _Refused:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"read_array({str(path)!r}): not a readable .npy or .npz file of plain numbers ({error}); pickled objects "
            f"are refused, save the numbers with numpy.save or numpy.savez."
        ) from error
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > (16 if array.dtype.kind == "c" else 8):
        raise ValueError(
            f"read_array({str(path)!r}): the array is of {array.dtype}, which torch cannot hold; save numbers of at "
            f"most 64 bits."
        )
    return torch.from_numpy(np.array(array, WIDER.get(array.dtype.name, array.dtype.newbyteorder("=")), order="C"))


def find(folders: Sequence[Path], names: Sequence[str]) -> Path:
    """Finds the first file of these names in these folders, or raises an error that lists both."""
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(
        f"looked for {' or '.join(names)} in {', '.join(str(folder) for folder in folders)} and found none; put the "
        f"file there, or pass the folder that holds it."
    )


class _Refused(ValueError):
    """An error that already says what to do, distinguished from those that NumPy raises."""


def _key(path: Path, names: Sequence[str], key: str | None) -> str:
    """Chooses the array of a .npz file."""
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        asked = "no key" if key is None else f"key={key!r}"
        raise _Refused(
            f"read_array({str(path)!r}): asked for {asked}, but the file holds {', '.join(names) or 'nothing'}; pass "
            f"one of these names as key."
        )
    return key

"""Finding files, and reading idx files, the format of MNIST."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

__all__ = ["INFLATION", "find", "read_idx"]

IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# The largest number of bytes that one byte of a deflate stream can encode (258 from two bits).
INFLATION = 1032
MOST_DIMENSIONS = 64  # the limit of NumPy and torch


def read_idx(path: str | os.PathLike) -> Tensor:
    """Reads one idx file, with or without gzip, which is recognised from the first bytes and not from the name.

    The sizes in the header are compared with the size of the file before memory is allocated.

    Args:
        path: the file.

    Shapes: those of the header. The dtype is the header's: uint8, int8, int16, int32, float32 or float64.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the header is not the header of an idx file, data are missing, or bytes follow the data.

    Source: LeCun, Cortes and Burges, The MNIST Database of Handwritten Digits, section "The IDX file format", 1998.
    """
    path = find([Path(path).parent], [Path(path).name])
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            return _read_idx(path, file, path.stat().st_size * (INFLATION if packed else 1))
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"read_idx({str(path)!r}): the gzip stream is damaged ({error}); get the file again."
        ) from error


def _read_idx(path: Path, file: IO[bytes], most: int) -> Tensor:
    """Reads an idx file of at most ``most`` bytes; reads no more than the header specifies."""
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES or head[3] == 0:
        raise ValueError(
            f"read_idx({str(path)!r}): the file starts with {head.hex(' ') or 'no bytes'}, so it is not an idx file; "
            f"check the path."
        )
    dtype, rank = np.dtype(IDX_TYPES[head[2]]), head[3]
    if rank > MOST_DIMENSIONS:
        raise ValueError(
            f"read_idx({str(path)!r}): the header has {rank} dimensions, more than {MOST_DIMENSIONS}; the file is "
            f"damaged, get it again."
        )
    sizes = file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise ValueError(
            f"read_idx({str(path)!r}): the header has {rank} dimensions, but the file ends after {4 + len(sizes)} "
            f"bytes; it is truncated, get it again."
        )
    shape = [int(n) for n in np.frombuffer(sizes, ">u4")]
    expected = math.prod(shape) * dtype.itemsize
    raw = file.read(expected + 1) if expected <= most else b""
    if len(raw) != expected:
        fault = "more bytes follow the data" if len(raw) > expected else "it is truncated"
        found = f"no more than {most}" if expected > most else "more" if len(raw) > expected else str(len(raw))
        raise ValueError(
            f"read_idx({str(path)!r}): shape {shape} of {dtype.name} needs {expected} bytes, but {found} follow the "
            f"header: {fault}; get the file again."
        )
    try:
        values = np.frombuffer(raw, dtype).reshape(shape)
    except ValueError as error:  # no values, and a size beyond the range of an index
        raise ValueError(f"read_idx({str(path)!r}): shape {shape} is not possible ({error}); get it again.") from error
    return torch.from_numpy(values.astype(dtype.newbyteorder("=")))


def find(folders: Sequence[Path], names: Sequence[str]) -> Path:
    """Finds the first file with one of these names in one of these folders; the error lists both."""
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(
        f"{' or '.join(names)} not found in {', '.join(str(folder) for folder in folders)}; put the file there, or "
        f"pass its folder."
    )

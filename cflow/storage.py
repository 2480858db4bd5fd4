"""Files that are written completely or not at all: replaced in one step, flushed to the disk, with checksums."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

__all__ = [
    "bytes_of", "is_part", "read_json", "read_tensors", "seal", "sync_folder", "write_json", "write_tensors",
    "written",
]  # fmt: skip

CHECKSUM, NOTE = "crc32", "note"


@contextmanager
def written(file: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; when the block ends, that file replaces ``file`` in one step.

    After a crash at any time there is the complete old file or the complete new one. Of two writers, the last one wins.
    Each writer has its own hidden folder, since some writers make further files. Folders of killed writers are removed.
    The file gets the permissions of any new file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "note.txt")
        >>> with written(file) as part:
        ...     _ = part.write_text("whole")
        >>> [each.name for each in file.parent.iterdir()]
        ['note.txt']
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    _clear(file.parent)
    folder = file.with_name(f".{file.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.part")
    folder.mkdir()
    part = folder / file.name
    try:
        part.touch()
        mode = stat.S_IMODE(part.stat().st_mode)
        yield part
        part.chmod(mode)  # safetensors makes files that other users may not read
        seal(part)
        os.replace(part, file)
        sync_folder(file.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_part(name: str) -> bool:
    """Returns whether an entry of a folder is the temporary folder of a writer."""
    return name.startswith(".") and name.endswith(".part")


def _host() -> str:
    return platform.node().replace(".", "-")


def _clear(folder: Path) -> None:
    """Removes the temporary folders of writers that have ended."""
    for part in folder.iterdir():
        if is_part(part.name) and part.name.count(".") > 4:
            import psutil

            host, pid = part.name.rsplit(".", 4)[1:3]
            if host == _host() and pid.isdecimal() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(part, ignore_errors=True)


def seal(file: Path, sync: bool = True) -> list[int]:
    """Flushes a file to the disk and returns its size and CRC-32."""
    size = checksum = 0
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
        if sync:
            os.fsync(opened.fileno())
    return [size, checksum]


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk, on systems that can open folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(file: Path, document: Mapping[str, Any]) -> None:
    """Writes a document with its checksum, completely or not at all."""
    sealed = {**document, CHECKSUM: zlib.crc32(json.dumps(document).encode())}
    with written(file) as part:
        part.write_text(json.dumps(sealed, indent=1) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """Reads a file that :func:`write_json` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, changed, or another kind of file.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        checksum = document.pop(CHECKSUM)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: not JSON with a checksum ({_short(error)}).") from error
    if checksum != zlib.crc32(json.dumps(document).encode()):
        raise ValueError(f"{file} is damaged: its checksum does not match.")
    return document


def write_tensors(file: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Writes CPU tensors and a note about them to one safetensors file, with a checksum of both."""
    from safetensors.torch import save_file

    # One entry: safetensors writes several entries in any order, and then equal contents could have different bytes.
    sealed = json.dumps({CHECKSUM: _checksum(note, tensors), NOTE: note})
    with written(file) as part:
        save_file(dict(tensors), part, {"cflow": sealed})


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file that :func:`write_tensors` wrote: tensors on the CPU, and the note. Executes nothing of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, changed, or another kind of file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file.")
    while True:
        before = _version(file)
        try:
            return _read(file)
        except ValueError:
            # safetensors opens a file twice; meanwhile another writer may have replaced it.
            if _version(file) == before:
                raise


def _version(file: Path) -> tuple[int, int, int]:
    """Identifies a version of a file. The inode number alone is not enough: systems use it again for a new file."""
    status = file.stat()
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            beside = json.loads(opened.metadata()["cflow"])
            # Copies are aligned in memory like new tensors, so that sums round as they did before saving.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - no mapping
        note, checksum = beside[NOTE], beside[CHECKSUM]
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{file} is damaged: not a safetensors file with a note and a checksum ({_short(error)})."
        ) from error
    if not isinstance(note, dict) or checksum != _checksum(note, tensors):
        raise ValueError(f"{file} is damaged: its checksum does not match.")
    return tensors, note


def bytes_of(value: Tensor) -> numpy.ndarray:
    """Returns a tensor's bytes, in the order of its entries."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _checksum(note: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    checksum = zlib.crc32(json.dumps(note).encode())
    for name in sorted(tensors):
        value = tensors[name]
        checksum = zlib.crc32(f"{name}\0{value.dtype}{list(value.shape)}".encode(), checksum)
        checksum = zlib.crc32(bytes_of(value), checksum)
    return checksum


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:100]

"""Files that are there whole or not at all: put in place in one step, brought to the disk, with checksums."""

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
    """Lends a path to write to; when the block ends, what was written there takes the place of ``file`` in one step.

    A kill or a crash, at any instant, leaves the old file or the new one, and so do two writers: the last one stays.
    Writers begin in a hidden folder of their own, as some make further files; those of writers that were killed are
    removed. The file has the permissions of any new file.

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
        part.chmod(mode)  # safetensors makes files that nobody else may read
        seal(part)
        os.replace(part, file)
        sync_folder(file.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_part(name: str) -> bool:
    """Says whether something in a folder is what a writer has begun: it is nothing that was saved."""
    return name.startswith(".") and name.endswith(".part")


def _host() -> str:
    return platform.node().replace(".", "-")


def _clear(folder: Path) -> None:
    """Removes what writers that are no more have begun in a folder."""
    for part in folder.iterdir():
        if is_part(part.name) and part.name.count(".") > 4:
            import psutil

            host, pid = part.name.rsplit(".", 4)[1:3]
            if host == _host() and pid.isdecimal() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(part, ignore_errors=True)


def seal(file: Path, sync: bool = True) -> list[int]:
    """Brings a file to the disk and gives its size and CRC-32."""
    size = checksum = 0
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
        if sync:
            os.fsync(opened.fileno())
    return [size, checksum]


def sync_folder(folder: Path) -> None:
    """Brings a folder's entries to the disk (where the system lets folders be opened)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(file: Path, document: Mapping[str, Any]) -> None:
    """Writes a document with its checksum, whole or not at all."""
    sealed = {**document, CHECKSUM: zlib.crc32(json.dumps(document).encode())}
    with written(file) as part:
        part.write_text(json.dumps(sealed, indent=1) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """Reads what :func:`write_json` wrote.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is cut, changed, or something else.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        checksum = document.pop(CHECKSUM)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: it is no document with a checksum ({_short(error)}).") from error
    if checksum != zlib.crc32(json.dumps(document).encode()):
        raise ValueError(f"{file} is damaged: its checksum is not that of what it holds.")
    return document


def write_tensors(file: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Writes tensors of the CPU and a note about them as one safetensors file with a checksum of both."""
    from safetensors.torch import save_file

    # One entry: safetensors writes several in any order, and equal contents would have other bytes each time.
    sealed = json.dumps({CHECKSUM: _checksum(note, tensors), NOTE: note})
    with written(file) as part:
        save_file(dict(tensors), part, {"cflow": sealed})


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`write_tensors` wrote: tensors on the CPU, and the note.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is cut, changed, or something else; nothing of it is executed.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file.")
    while True:
        before = _version(file)
        try:
            return _read(file)
        except ValueError:
            # safetensors opens a file twice; between, another writer may have put a new one in its place.
            if _version(file) == before:
                raise


def _version(file: Path) -> tuple[int, int, int]:
    """Tells a file from one that took its place: systems give the number of an old file to a new one."""
    status = file.stat()
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            beside = json.loads(opened.metadata()["cflow"])
            # Copies are aligned in memory, as fresh tensors are; sums then round as they did before saving.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - no mapping
        note, checksum = beside[NOTE], beside[CHECKSUM]
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{file} is damaged: it is no safetensors file with a note and a checksum ({_short(error)})."
        ) from error
    if not isinstance(note, dict) or checksum != _checksum(note, tensors):
        raise ValueError(f"{file} is damaged: its checksum is not that of what it holds.")
    return tensors, note


def bytes_of(value: Tensor) -> numpy.ndarray:
    """Gives a tensor's bytes, in the order of its entries."""
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

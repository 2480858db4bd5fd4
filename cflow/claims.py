"""A lock, so that one process at a time writes to a folder; the system releases it when the process ends."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cflow.storage import read_json, write_json

__all__ = ["claimed", "is_claim", "writer_of"]

LOCK, HOLDER = ".lock", "running.json"
PATIENCE = 10.0  # seconds to wait until the workers of a killed process have ended, too


@contextmanager
def claimed(folder: Path, what: str) -> Iterator[None]:
    """Keeps other processes from writing to a folder while the block runs.

    The operating system holds the lock and releases it when the process ends, in whatever way. The file
    ``running.json`` next to it describes the process.

    Args:
        folder: the folder; it is created if needed.
        what: the name of the caller, for the error.

    Raises:
        ValueError: if another process (or another thread of this one) is writing there; the message identifies it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with claimed(folder, "fit"):
        ...     sorted(each.name for each in folder.iterdir())
        ['.lock', 'running.json']
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = _holder(folder)
        try:
            lock.acquire(timeout=PATIENCE if _is_gone(holder) else 0)
        except Timeout:
            who = _name(holder) if holder else "another process"
            raise ValueError(
                f"{what}(out={str(folder)!r}): {who} is writing there; wait for it, end it, or choose another folder."
            ) from None
    try:
        begun = time.strftime("%Y-%m-%d %H:%M:%S")
        command = " ".join(sys.argv)[:200]
        write_json(folder / HOLDER, {"pid": os.getpid(), "host": platform.node(), "begun": begun, "command": command})
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def is_claim(name: str) -> bool:
    """Returns whether a file only belongs to the lock of its folder."""
    return name in (LOCK, HOLDER)


def writer_of(folder: Path) -> str | None:
    """Describes the process that is writing to a folder; None where there is none, or it has ended."""
    holder = _holder(folder)
    return None if not holder or _is_gone(holder) else _name(holder)


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}, started at {holder.get('begun')},"


def _holder(folder: Path) -> dict[str, Any]:
    """Reads the description of the writing process; empty where it is not known (yet)."""
    with contextlib.suppress(OSError, ValueError):
        return read_json(folder / HOLDER)
    return {}


def _is_gone(holder: dict[str, Any]) -> bool:
    import psutil

    return holder.get("host") == platform.node() and not psutil.pid_exists(holder.get("pid", -1))

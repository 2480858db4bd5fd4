"""One process at a time writes to a folder: a lock that names its holder and that the system frees when it ends."""

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
PATIENCE = 10.0  # seconds in which the workers of a process that was killed end, too


@contextmanager
def claimed(folder: Path, what: str) -> Iterator[None]:
    """Keeps other processes out of a folder while the block runs.

    The lock is the operating system's: a process that ends, however it ends, holds it no longer. Beside it
    ``running.json`` says who is at work.

    Raises:
        ValueError: where another process (or another thread of this one) is at work there; it is named.

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
                f"{what}(out={str(folder)!r}): {who} is writing there, and each would overwrite the other's files; "
                f"wait for it or end it, or choose another folder."
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
    """Says whether a file in a folder only tells who is at work there."""
    return name in (LOCK, HOLDER)


def writer_of(folder: Path) -> str | None:
    """Names the process that is at work in a folder; None where nothing says so, or that process is no more."""
    holder = _holder(folder)
    return None if not holder or _is_gone(holder) else _name(holder)


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}, begun at {holder.get('begun')},"


def _holder(folder: Path) -> dict[str, Any]:
    """Reads who is at work; nothing where that is not known (yet)."""
    with contextlib.suppress(OSError, ValueError):
        return read_json(folder / HOLDER)
    return {}


def _is_gone(holder: dict[str, Any]) -> bool:
    import psutil

    return holder.get("host") == platform.node() and not psutil.pid_exists(holder.get("pid", -1))

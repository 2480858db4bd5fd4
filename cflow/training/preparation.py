"""Preparation of batches for the loss: draws and couplings, cut into parts, ahead of the step."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from cflow.objectives.batch import Shared
from cflow.training.batches import RawBatch

__all__ = ["ahead", "cut", "default_workers", "merged", "pieces", "rows_of"]


def merged(raws: list[RawBatch]) -> RawBatch:
    """Concatenates batches."""
    if len(raws) == 1:
        return raws[0]
    join = lambda *leaves: None if leaves[0] is None else torch.cat(leaves)
    x, context = (tree_map(join, *[getattr(raw, name) for raw in raws]) for name in ("x", "context"))
    return RawBatch(x, context, raws[-1].epoch, raws[-1].used)


def rows_of(batch: Any, given: int) -> int:
    """Returns the number of rows of a prepared batch: ``given``, unless the coupling kept fewer or made more.

    If no tensor has the ``given`` number of rows, it is that of the first tensor.
    """
    counts = [len(leaf) for leaf in _tensors(batch) if leaf.dim() > 0]
    if not counts:
        raise ValueError(
            f"fit: the prepared batch ({type(batch).__name__}) has no tensor with rows to cut; return tensors from "
            f"objective.prepare, or pass accumulate=1, pool=1."
        )
    return given if given in counts else counts[0]


def _tensors(batch: Any) -> Iterator[Tensor]:
    """Yields the tensors that have rows."""
    if isinstance(batch, Shared):
        return
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from _tensors(getattr(batch, field.name))
    else:
        for leaf in tree_leaves(batch):
            if isinstance(leaf, Tensor):
                yield leaf
            elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
                yield from _tensors(leaf)


def cut(batch: Any, rows: int, count: int) -> list[tuple[Any, int]]:
    """Cuts a prepared batch into ``count`` consecutive pieces of nearly equal size, each with its number of rows.

    Every tensor is cut along its first dimension. Numbers and ``objectives.Shared`` tensors are in every piece.
    """
    if count == 1:
        return [(batch, rows)]
    bounds = [(rows * number // count, rows * (number + 1) // count) for number in range(count)]
    return [(_slice(batch, rows, start, stop), stop - start) for start, stop in bounds]


def pieces(batch: Any, size: int, count: int) -> list[tuple[Any, float]]:
    """Cuts a prepared batch of ``size`` rows into at most ``count`` pieces, each with its share of the rows."""
    return [(piece, rows / size) for piece, rows in cut(batch, size, min(count, size))]


def _slice(batch: Any, size: int, start: int, stop: int) -> Any:
    if isinstance(batch, Shared):
        return batch
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        parts = {
            field.name: _slice(getattr(batch, field.name), size, start, stop) for field in dataclasses.fields(batch)
        }
        return dataclasses.replace(batch, **parts)
    if isinstance(batch, dict):
        return {name: _slice(part, size, start, stop) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [_slice(part, size, start, stop) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if not isinstance(batch, Tensor) or batch.dim() == 0:
        return batch
    if len(batch) != size:
        raise ValueError(
            f"fit: the prepared batch has {size} rows, but a tensor of shape {list(batch.shape)}; if all rows share "
            f"it, wrap it as objectives.Shared(tensor)."
        )
    return batch[start:stop]


def default_workers(device: torch.device) -> int:
    """Returns the number of threads that prepare: the cores that the step does not use, at most eight.

    The step uses torch's threads if it runs on the CPU, otherwise one core. Processes that a launcher started on this
    machine share its cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return min(8, max(1, cores - (torch.get_num_threads() if device.type == "cpu" else 1)))


def ahead(
    fetch: Callable[[], Any],
    prepare: Callable[[int, Any], Any],
    start: int,
    stop: int,
    depth: int,
    workers: int = 1,
    stride: int = 1,
    device: torch.device | None = None,
):
    """Yields ``(raw, prepared)`` for every ``stride``-th step from ``start`` to ``stop``, ``depth`` of them ahead.

    Batches are fetched in the caller's thread, whose random state a fetch may use. Preparation runs in ``workers``
    threads with separate generators, so results do not depend on ``depth`` or ``workers``, and keep their order.
    ``depth=0`` prepares in line. An exception in a worker is raised here, at the step to which it belongs.
    """
    numbers = range(start, stop, stride)
    if depth == 0:
        for number in numbers:
            raw = fetch()
            yield raw, prepare(number, raw)
        return
    # New threads use the default stream of the first accelerator; the caller's stream keeps the order.
    stream = (torch.cuda.current_stream(device),) if device is not None and device.type == "cuda" else ()
    executor = ThreadPoolExecutor(
        min(workers, depth),
        thread_name_prefix="cflow-prepare",
        initializer=torch.cuda.set_stream if stream else None,
        initargs=stream,
    )
    waiting: deque[tuple[Any, Future]] = deque()
    left = iter(numbers)
    try:
        while True:
            while len(waiting) <= depth and (number := next(left, None)) is not None:
                try:
                    raw = fetch()
                except Exception as error:  # result() raises it at its own step, after earlier ones
                    left, raw, future = iter(()), None, Future()
                    future.set_exception(error)
                else:
                    future = executor.submit(prepare, number, raw)
                waiting.append((raw, future))
            if not waiting:
                return
            raw, future = waiting.popleft()
            yield raw, future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)

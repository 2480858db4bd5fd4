"""Pairs of noise and sample that a trained flow joins, on disk: what reflow and distillation learn from."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path
from re import fullmatch
from typing import Any

import torch
from torch import Tensor

from cflow.arguments import is_integer
from cflow.claims import claimed, is_claim
from cflow.couplings import paired
from cflow.modes import evaluating
from cflow.registry import outline
from cflow.storage import bytes_of, is_part, read_json, read_tensors, write_json, write_tensors
from cflow.training.differences import first_difference
from cflow.training.processes import Processes, group_is_open
from cflow.training.streams import PAIRS, generator_for
from cflow.training.tracking import is_watched

__all__ = ["Pairs", "generate_pairs"]

FORMAT, NOTE = "cflow pairs 2", "pairs.json"
SHARD = 4096


class Pairs:
    """Pairs ``(noise, sample, context)`` that :func:`generate_pairs` wrote, read from their folder.

    Both halves are in model space: what the flow's transforms make of data, so that nothing is rounded between rounds.

    Attributes:
        x: ``[N, 2, *event]``, as ``fit`` takes given pairs.
        context: ``[N, *context_shape]``, or None.
        note: how they were made: seed, solver, guidance, flow.

    Raises:
        FileNotFoundError: where the folder holds no pairs.
        ValueError: where shards are missing (the generation was not finished) or damaged; the file is named.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        if not (self.folder / NOTE).is_file():
            raise FileNotFoundError(
                f"Pairs({str(folder)!r}): no pairs there ({NOTE} is missing); write them by training.generate_pairs."
            )
        again = "call training.generate_pairs again to make what is missing or damaged anew"
        try:
            self.note = read_json(self.folder / NOTE)
            count = _count(self.note, self.folder / NOTE)
        except ValueError as error:
            raise ValueError(f"Pairs({str(folder)!r}): {error} Then {again}.".replace(". Then", ";")) from None
        # A note may ask for any number of shards: no more are looked for than there can be.
        there = len(list(self.folder.glob("pairs-*.safetensors")))
        missing = next((i for i in range(min(count, there + 1)) if not _file(self.folder, i).is_file()), None)
        if missing is not None:
            raise ValueError(
                f"Pairs({str(folder)!r}): {max(count - there, 1)} of {count} shards are missing (the first is "
                f"{_file(self.folder, missing).name}); {again}."
            )
        try:
            parts = [_read(self.folder, index, self.note) for index in range(count)]
            for index, part in enumerate(parts):
                if _kind(part) != _kind(parts[0]):
                    raise ValueError(
                        f"{_file(self.folder, index)} is damaged: its tensors are not those of the others."
                    )
        except ValueError as error:
            raise ValueError(f"Pairs({str(folder)!r}): {error} Then {again}.".replace(". Then", ";")) from None
        self.x = paired(*(torch.cat([part[name] for part in parts]) for name in ("x0", "x1")))
        self.context = torch.cat([part["context"] for part in parts]) if "context" in parts[0] else None

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Pairs({str(self.folder)!r}: {len(self)} of shape {tuple(self.x.shape[2:])})"


def generate_pairs(
    flow: Any,
    num: int,
    out: str | os.PathLike,
    *,
    solver: Any = None,
    guidance: Any = None,
    context: Tensor | None = None,
    data: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 256,
    shard: int | None = None,
    progress: bool | None = None,
) -> Pairs:
    r"""Writes pairs of noise and the sample that a flow carries it to, shard by shard.

    .. math:: x_0 \sim p_0, \quad x_1 = X_{0,1}(x_0; c); \qquad \text{with data: } x_1 = \text{data}, \quad
        x_0 = X_{1,0}(x_1; c)

    Every shard draws from a stream of its own, named by the seed and its number. So a run that was interrupted goes on
    with the shards that are missing, under ``accelerate launch`` every process makes its part of the same shards, and
    each pair can be made again from what is written beside it. A shard is written whole or not at all, with a checksum;
    one that is damaged is named in a warning and drawn anew.

    Args:
        flow: a trained :class:`cflow.ContinuousFlow`.
        num: how many pairs.
        out: their folder; it may hold the beginning of the same set.
        solver, guidance: as for ``flow.sample``; guidance is thus distilled into the pairs.
        context: contexts ``[M, *context_shape]`` of a conditional flow, taken in turn; of a class-conditional one,
            every class in turn unless given. With ``data``, one for each.
        data: real samples ``[num, *event]`` to carry back to noise, as they are measured: pairs with a true half.
        seed: of the noise.
        batch_size: pairs carried at once.
        shard: pairs per file; 4096 unless given.
        progress: whether to show a bar; unless given, where a person watches: in a terminal or a notebook.

    Shapes: each file ``pairs-00000.safetensors`` holds ``x0``, ``x1 [n, *event]`` in model space and ``context``.

    Cost: one solve per pair.

    Raises:
        TypeError: for a flow without a velocity.
        ValueError: for contexts or data that do not fit, for a folder with pairs of another flow, seed or solver, and
            for one in which another process is at work.
        FloatingPointError: where a solve fails.

    Source: Liu et al., Flow Straight and Fast, 2022, arXiv:2209.03003; pairs with a true half after Kim et al.,
    Simple ReFlow, 2024, arXiv:2410.07815.

    Example:
        >>> import cflow, tempfile
        >>> from cflow import bases, fields, paths, solvers
        >>> flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
        >>> pairs = generate_pairs(flow, 10, tempfile.mkdtemp(), solver=solvers.Heun(steps=2))
        >>> pairs.x.shape
        torch.Size([10, 2, 2])
    """
    if not hasattr(flow, "velocity"):
        raise TypeError(
            f"generate_pairs({type(flow).__name__}): pairs are joined by a velocity; pass a ContinuousFlow."
        )
    shard = SHARD if shard is None else shard
    if min(num, batch_size, shard) < 1:
        raise ValueError(f"generate_pairs(num={num}, batch_size={batch_size}, shard={shard}): all are at least 1.")
    progress = is_watched() if progress is None else progress
    context = _contexts(flow, context, num, data)
    if data is not None and len(data) != num:
        raise ValueError(
            f"generate_pairs(num={num}, data of {len(data)} rows): one pair per row; pass num={len(data)}."
        )
    from accelerate import Accelerator

    group_was_there = group_is_open()
    accelerator = Accelerator()
    processes, folder = Processes(accelerator, group_was_there), Path(out)
    note = {
        "format": FORMAT, "num": num, "shard": shard, "seed": seed, "batch_size": batch_size,
        "solver": _made_of(flow.solver if solver is None else solver), "guidance": _made_of(guidance),
        "data": _digest([data]), "context": _digest([context]), "flow": _made_of(flow, without="solver"),
    }  # fmt: skip
    with ExitStack() as held, processes.together():
        processes.from_main(lambda: _check_folder(folder))
        processes.from_main(lambda: held.enter_context(claimed(folder, "generate_pairs")))
        processes.from_main(lambda: _claim(folder, note))
        mine = [index for index in range(-(-num // shard)) if index % processes.world == processes.rank]
        waiting = [index for index in mine if not _is_whole(folder, index, note)]
        with evaluating(flow):
            bar = _bar(len(mine), len(mine) - len(waiting), progress and processes.is_main)
            for index in waiting:
                start = index * shard
                size = min(shard, num - start)
                rows = torch.arange(start, start + size)
                given = None if context is None else context[rows % len(context)]
                real = None if data is None else data[rows]
                tensors = _shard(flow, size, given, real, seed, index, batch_size, solver, guidance)
                write_tensors(_file(folder, index), tensors, {"shard": index, "set": _digest_of(note)})
                bar.update()
            bar.close()
    return Pairs(folder)


@torch.no_grad()
def _shard(flow, count, context, data, seed, index, batch_size, solver, guidance) -> dict[str, Tensor]:
    """Makes one file's pairs; draws depend on the seed and the number of the shard alone."""
    device = flow.device
    generator = generator_for(device, seed, PAIRS, index)
    start, end = (0.0, 1.0) if data is None else (1.0, 0.0)
    if data is None:
        begin = flow.cast(flow.base.sample((count,), generator=generator))
    else:
        every = None if context is None else flow.cast(context)
        begin = flow.preprocess(flow.cast(data), every, generator=generator)[0]
    ends = []
    for first in range(0, count, batch_size):
        here = None if context is None else flow.cast(context[first : first + batch_size])
        piece = begin[first : first + batch_size]
        solution = flow.transport(piece, start, end, here, solver=solver, guidance=guidance, generator=generator)
        try:
            ends.append(solution.require_success().y)
        except RuntimeError as failure:
            raise FloatingPointError(f"generate_pairs: shard {index} failed: {failure}") from None
    pair = (begin, torch.cat(ends)) if data is None else (torch.cat(ends), begin)
    tensors = {name: each.cpu().contiguous() for name, each in zip(("x0", "x1"), pair)}
    return tensors if context is None else {**tensors, "context": context.cpu().contiguous()}


def _contexts(flow, context: Tensor | None, num: int, data: Tensor | None) -> Tensor | None:
    classes = flow.classes
    if context is None and classes and data is None:
        return torch.arange(classes)
    if (context is None) != (flow.context_shape is None):
        known = "unconditional" if flow.context_shape is None else "conditional"
        raise ValueError(
            f"generate_pairs(context={'None' if context is None else '...'}): the flow is {known}; pass contexts "
            f"[M, *context_shape] for a conditional flow, and none for another."
        )
    if context is not None:
        context = torch.as_tensor(context)
        if context.shape[1:] != flow.context_shape or not len(context) or (data is not None and len(context) != num):
            rows = "M" if data is None else num
            raise ValueError(
                f"generate_pairs(context of shape {list(context.shape)}): pass one of shape "
                f"[{', '.join(map(str, (rows, *flow.context_shape)))}]."
            )
    return context


def _count(note: dict[str, Any], file: Path) -> int:
    """Gives the number of shards that a note speaks of."""
    num, shard = note.get("num"), note.get("shard")
    if note.get("format") != FORMAT or not (is_integer(num) and is_integer(shard) and min(num, shard) > 0):
        raise ValueError(f"{file} describes no pairs of the format {FORMAT!r}.")
    return -(-num // shard)


def _file(folder: Path, index: int) -> Path:
    return folder / f"pairs-{index:05d}.safetensors"


def _check_folder(folder: Path) -> None:
    """Raises where a folder holds something that is no part of a set of pairs."""
    ours = lambda name: is_part(name) or is_claim(name) or name == NOTE or fullmatch(r"pairs-\d+\.safetensors", name)
    if folder.is_dir() and not all(ours(each.name) for each in folder.iterdir()):
        raise ValueError(f"generate_pairs(out={str(folder)!r}): the folder holds something else; choose another one.")


def _claim(folder: Path, note: dict[str, Any]) -> None:
    """Writes what the folder is for, or sees that it was for the same."""
    file = folder / NOTE
    try:
        before = read_json(file)
    except FileNotFoundError:
        before = {}
    except ValueError as error:
        warnings.warn(f"generate_pairs: {error} It is written anew.", stacklevel=2)
        before = {}
    if not before:  # the shards say whose they are
        for shard in sorted(folder.glob("pairs-*.safetensors")):
            if _set_of(shard) not in (None, _digest_of(note)):
                raise ValueError(
                    f"generate_pairs(out={str(folder)!r}): {shard.name} there belongs to another set of pairs, whose "
                    f"{NOTE} is lost; choose another folder, or remove it."
                )
        write_json(file, note)
        return
    for name in note:
        if before.get(name) != note[name]:
            place, now, then = first_difference(name, note[name], before.get(name))
            place = place.replace(".made of", "")
            raise ValueError(
                f"generate_pairs(out={str(folder)!r}): the pairs there were made with another {name} ({place} was "
                f"{then!s:.80} and is {now!s:.80}); choose another folder, or remove it."
            )


def _set_of(shard: Path) -> str | None:
    """Reads which set a shard belongs to; None where it is damaged."""
    with suppress(ValueError):
        return read_tensors(shard)[1].get("set")
    return None


def _read(folder: Path, index: int, note: dict[str, Any]) -> dict[str, Tensor]:
    """Reads a shard of a set; raises a ValueError that names the file where it is damaged, or another one."""
    file = _file(folder, index)
    tensors, own = read_tensors(file)
    size = min(note["shard"], note["num"] - index * note["shard"])
    names = {"x0", "x1", *(("context",) if note.get("context") else ())}
    fits = set(tensors) == names and all(each.dim() > 0 and len(each) == size for each in tensors.values())
    fits = fits and _kind(tensors)["x0"] == _kind(tensors)["x1"]
    if own != {"shard": index, "set": _digest_of(note)} or not fits:
        raise ValueError(f"{file} is no part of this set of pairs: it was made for another one, or another place.")
    return tensors


def _kind(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Gives what all shards of a set have in common: shapes of single items, and dtypes."""
    return {name: (each.shape[1:], each.dtype) for name, each in tensors.items()}


def _is_whole(folder: Path, index: int, note: dict[str, Any]) -> bool:
    """Says whether a shard is there; one that is damaged is named, and will be drawn anew."""
    try:
        _read(folder, index, note)
    except FileNotFoundError:
        return False
    except ValueError as error:
        warnings.warn(f"generate_pairs: {error} It is drawn anew.", stacklevel=2)
        return False
    return True


def _made_of(part: Any, without: str = "") -> Any:
    """Describes a part by what it is made of, ``without`` one argument, and by the values of its state."""
    said = outline(part)
    if without and isinstance(said, dict):
        said = {name: {key: each for key, each in parts.items() if key != without} for name, parts in said.items()}
    state = part.state_dict() if isinstance(part, torch.nn.Module) else {}
    return {"made of": said, "names": list(state), "values": _digest(state.values())} if state else said


def _digest_of(note: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(note).encode()).hexdigest()[:16]


def _digest(tensors) -> str | None:
    """Gives a fingerprint of tensors; None of none."""
    digest, some = hashlib.sha256(), False
    for each in tensors:
        if each is not None:
            some = True
            digest.update(bytes_of(each))
    return digest.hexdigest()[:16] if some else None


def _bar(total: int, done: int, shown: bool):
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=done, unit="shard", disable=not shown)

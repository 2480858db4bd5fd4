"""Pairs of noise and sample of a trained flow, on disk, for reflow and distillation."""

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
    """Reads pairs ``(noise, sample, context)`` that :func:`generate_pairs` wrote.

    Noise and sample are in model space, after the flow's transforms, so that no rounding occurs between rounds.

    Args:
        folder: the folder of the pairs.

    Attributes:
        x: ``[N, 2, *event]``, the form in which ``fit`` takes given pairs.
        context: ``[N, *context_shape]``, or None.
        note: how the pairs were made: seed, solver, guidance, flow.

    Raises:
        FileNotFoundError: if the folder has no pairs.
        ValueError: if files are missing (the generation is not complete) or damaged; the message lists the file.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        if not (self.folder / NOTE).is_file():
            raise FileNotFoundError(
                f"Pairs({str(folder)!r}): no pairs there ({NOTE} is missing); write them with training.generate_pairs."
            )
        again = "call training.generate_pairs again to write missing or damaged files"
        try:
            self.note = read_json(self.folder / NOTE)
            count = _count(self.note, self.folder / NOTE)
        except ValueError as error:
            raise ValueError(f"Pairs({str(folder)!r}): {error} Then {again}.".replace(". Then", ";")) from None
        # A damaged note may ask for any number of shards, so the search is limited.
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
                        f"{_file(self.folder, index)} is damaged: its tensors differ from those of the others."
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
    r"""Writes pairs of noise and the sample to which a flow maps it, file by file.

    .. math:: x_0 \sim p_0, \quad x_1 = X_{0,1}(x_0; c); \qquad \text{with data: } x_1 = \text{data},
        \quad x_0 = X_{1,0}(x_1; c)

    The pairs of a file (a shard) are drawn from a separate random stream, which depends on the seed and the number of
    the file. So an interrupted run continues with the missing files, every process of ``accelerate launch`` writes its
    part of the same files, and each pair can be reproduced from the note in the folder. A file is written completely or
    not at all, with a checksum. A damaged file is reported in a warning and drawn again.

    Args:
        flow: a trained :class:`cflow.ContinuousFlow`.
        num: the number of pairs.
        out: the folder of the pairs; it may have a part of the same set.
        solver, guidance: as for ``flow.sample``; the pairs include the guidance, so it is distilled.
        context: contexts ``[M, *context_shape]`` of a conditional flow, which are used in turn. With ``data``, one for
            each sample. Default for class labels: every class in turn.
        data: real samples ``[num, *event]`` in their original units; the pairs are these samples and their noise.
        seed: the seed of the noise.
        batch_size: pairs per solve.
        shard: pairs per file. Default: 4096.
        progress: whether to show a progress bar. Default: only in a terminal or a notebook.

    Shapes: each file ``pairs-00000.safetensors`` has ``x0``, ``x1 [n, *event]`` in model space and ``context``.

    Cost: one solve per pair.

    Raises:
        TypeError: for a flow without a velocity.
        ValueError: for contexts or data that do not fit, for a folder with pairs of another flow, seed or solver, and
            for a folder to which another process is writing.
        FloatingPointError: if a solve fails.

    Source: Liu et al., Flow Straight and Fast, 2022, arXiv:2209.03003; for pairs with real samples Kim et al., Simple
    ReFlow, 2024, arXiv:2410.07815.

    Example:
        >>> import cflow, tempfile
        >>> from cflow import bases, fields, paths, solvers
        >>> flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
        >>> pairs = generate_pairs(flow, 10, tempfile.mkdtemp(), solver=solvers.Heun(steps=2))
        >>> pairs.x.shape
        torch.Size([10, 2, 2])
    """
    if not hasattr(flow, "velocity"):
        raise TypeError(f"generate_pairs({type(flow).__name__}): this flow has no velocity; pass a ContinuousFlow.")
    shard = SHARD if shard is None else shard
    if min(num, batch_size, shard) < 1:
        raise ValueError(f"generate_pairs(num={num}, batch_size={batch_size}, shard={shard}): pass 1 or more for each.")
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
    """Computes the pairs of one file; draws depend only on the seed and the number of the shard."""
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
            f"[M, *context_shape] for a conditional flow only."
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
    """Returns the number of shards in a note."""
    num, shard = note.get("num"), note.get("shard")
    if note.get("format") != FORMAT or not (is_integer(num) and is_integer(shard) and min(num, shard) > 0):
        raise ValueError(f"{file} does not describe pairs of the format {FORMAT!r}.")
    return -(-num // shard)


def _file(folder: Path, index: int) -> Path:
    return folder / f"pairs-{index:05d}.safetensors"


def _check_folder(folder: Path) -> None:
    """Raises if a folder has files that do not belong to a set of pairs."""
    ours = lambda name: is_part(name) or is_claim(name) or name == NOTE or fullmatch(r"pairs-\d+\.safetensors", name)
    if folder.is_dir() and not all(ours(each.name) for each in folder.iterdir()):
        raise ValueError(f"generate_pairs(out={str(folder)!r}): the folder has other files; choose another one.")


def _claim(folder: Path, note: dict[str, Any]) -> None:
    """Writes the note of the folder, or checks that the existing one is the same."""
    file = folder / NOTE
    try:
        before = read_json(file)
    except FileNotFoundError:
        before = {}
    except ValueError as error:
        warnings.warn(f"generate_pairs: {error} It is written again.", stacklevel=2)
        before = {}
    if not before:  # the shards show to which set they belong
        for shard in sorted(folder.glob("pairs-*.safetensors")):
            if _set_of(shard) not in (None, _digest_of(note)):
                raise ValueError(
                    f"generate_pairs(out={str(folder)!r}): {shard.name} there belongs to another set of pairs "
                    f"without {NOTE}; choose another folder, or remove it."
                )
        write_json(file, note)
        return
    for name in note:
        if before.get(name) != note[name]:
            place, now, then = first_difference(name, note[name], before.get(name))
            place = place.replace(".made of", "")
            raise ValueError(
                f"generate_pairs(out={str(folder)!r}): the pairs there were made with another {name} ({place} was "
                f"{then!s:.80}, now {now!s:.80}); choose another folder, or remove it."
            )


def _set_of(shard: Path) -> str | None:
    """Returns the set to which a shard belongs; None if the shard is damaged."""
    with suppress(ValueError):
        return read_tensors(shard)[1].get("set")
    return None


def _read(folder: Path, index: int, note: dict[str, Any]) -> dict[str, Tensor]:
    """Reads a shard of a set; raises a ValueError if the file is damaged or belongs to another set."""
    file = _file(folder, index)
    tensors, own = read_tensors(file)
    size = min(note["shard"], note["num"] - index * note["shard"])
    names = {"x0", "x1", *(("context",) if note.get("context") else ())}
    fits = set(tensors) == names and all(each.dim() > 0 and len(each) == size for each in tensors.values())
    fits = fits and _kind(tensors)["x0"] == _kind(tensors)["x1"]
    if own != {"shard": index, "set": _digest_of(note)} or not fits:
        raise ValueError(f"{file} is from another set of pairs, or from another position in this one.")
    return tensors


def _kind(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Returns the shapes of single items and the dtypes, which are equal for all shards of a set."""
    return {name: (each.shape[1:], each.dtype) for name, each in tensors.items()}


def _is_whole(folder: Path, index: int, note: dict[str, Any]) -> bool:
    """Returns whether a shard is complete; a damaged one is reported in a warning and drawn again."""
    try:
        _read(folder, index, note)
    except FileNotFoundError:
        return False
    except ValueError as error:
        warnings.warn(f"generate_pairs: {error} It is drawn again.", stacklevel=2)
        return False
    return True


def _made_of(part: Any, without: str = "") -> Any:
    """Describes a part by its arguments, ``without`` one of them, and by a digest of its state."""
    found = outline(part)
    if without and isinstance(found, dict):
        found = {name: {key: each for key, each in parts.items() if key != without} for name, parts in found.items()}
    state = part.state_dict() if isinstance(part, torch.nn.Module) else {}
    return {"made of": found, "names": list(state), "values": _digest(state.values())} if state else found


def _digest_of(note: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(note).encode()).hexdigest()[:16]


def _digest(tensors) -> str | None:
    """Computes a digest of tensors; None if there are none."""
    digest, some = hashlib.sha256(), False
    for each in tensors:
        if each is not None:
            some = True
            digest.update(bytes_of(each))
    return digest.hexdigest()[:16] if some else None


def _bar(total: int, done: int, shown: bool):
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=done, unit="shard", disable=not shown)

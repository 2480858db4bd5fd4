"""Saving and loading: all tensors in one safetensors file, which also has the constructor arguments as a JSON tree.

Nothing is unpickled. A file can refer only to registered classes (:func:`cflow.register`). Loading runs only their
constructors, with limits on memory and operations.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor, nn

from cflow import registry
from cflow.arguments import plain
from cflow.building import Budget
from cflow.claims import writer_of
from cflow.storage import is_part, read_tensors, write_tensors

__all__ = ["FILE", "describe", "find", "load", "save", "write"]

FORMAT = "cflow 2"
FILE = "flow.safetensors"
EARLIER = "flow.json"  # a file of the first format
Plain = (str, int, float, bool, type(None))


def save(flow: nn.Module, path: str | os.PathLike) -> Path:
    """Saves a flow (or any registered module) in the folder ``path``, as one file: ``flow.safetensors``.

    The file contains the tensors, the constructor arguments and a checksum of both. It replaces an older file in one
    step: after a crash, and also with two writers at once, the folder contains the complete old flow or the complete
    new one. A network wrapped by ``torch.compile`` is saved without the wrapper.

    Args:
        flow: the flow or module.
        path: the folder; it is created if needed.

    Returns:
        The folder, with symbolic links resolved.

    Raises:
        TypeError: for anything that is not a module.
        ValueError: if a part is not registered or cannot be saved (such as a function); the message names the part.
        FileExistsError: if ``path`` exists and contains something else, such as a flow of an earlier format.

    Example:
        >>> import cflow, tempfile
        >>> from cflow import bases, fields, paths
        >>> flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Cosine("x1"))
        >>> folder = cflow.save(flow, tempfile.mkdtemp() + "/model")
        >>> cflow.load(folder).path
        Cosine(predict='x1')
    """
    if not isinstance(flow, nn.Module):
        raise TypeError(f"save({flow!r:.60}): not a flow or module; pass the flow, then the path.")
    path = Path(os.path.realpath(path))
    ours = lambda each: each.name == FILE or is_part(each.name)
    if (path / EARLIER).is_file():
        raise FileExistsError(
            f"save({str(path)!r}): there is a flow of an earlier format ({EARLIER}); choose another path."
        )
    if path.exists() and not (path.is_dir() and all(ours(each) for each in path.iterdir())):
        raise FileExistsError(f"save({str(path)!r}): this exists and is not a saved flow; choose another path.")
    write(flow, path / FILE)
    return path


def write(flow: nn.Module, file: Path, state: dict[str, Tensor] | None = None) -> None:
    """Writes the file of :func:`save`; ``state`` is the state dict, needed where the flow is sharded."""
    write_tensors(file, *describe(flow, flow.state_dict() if state is None else state))


def describe(flow: nn.Module, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors of a flow, and a description of its parts that JSON can hold.

    Raises:
        ValueError: if a part is not registered or cannot be saved.
    """
    flow = registry.uncompiled(flow)
    state = {f"state.{registry.uncompiled_name(name)}": value for name, value in state.items()}
    own = flow.state_dict()
    known = {
        _identity(value): f"state.{registry.uncompiled_name(name)}" for name, value in own.items() if value.numel()
    }
    tensors = _independent(state)
    tree = _describe(flow, type(flow).__qualname__, tensors, known)
    # Buffers outside the state dict (tables, devices) get the dtype of all floating tensors, if these have one dtype.
    held = (*flow.parameters(), *flow.buffers())
    dtypes = {str(each.dtype).removeprefix("torch.") for each in held if each.is_floating_point()}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    return tensors, {"format": FORMAT, "flow": tree, "dtype": dtype}


def find(path: str | os.PathLike) -> Path:
    """Finds the folder of a saved flow: ``path``, or its ``model``, or the newest of its ``checkpoints``.

    Raises:
        FileNotFoundError: if there is no saved flow.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / FILE).is_file():
            return folder
    steps = {each: re.fullmatch(r"step-(\d+)", each.name) for each in path.glob("checkpoints/step-*")}
    steps = {each: int(match[1]) for each, match in steps.items() if match and (each / FILE).is_file()}
    if steps:
        return max(steps, key=steps.get)
    if (path.is_file() and path.name == FILE) or (path.is_dir() and path.name in ("checkpoints", "tensorboard")):
        raise FileNotFoundError(f"{path} is only a part of a run; pass its folder, {path.parent}.")
    writer = writer_of(path)
    if writer is not None:
        raise FileNotFoundError(
            f"{path}: {writer} has not saved a flow yet; wait for its first checkpoint (checkpoint_every of fit)."
        )
    if (path / "checkpoints").is_dir() or (path / "history.csv").is_file():
        raise FileNotFoundError(f"{path}: the run has not saved a flow yet; continue it (resume=True), or start again.")
    raise FileNotFoundError(
        f"{path}: no saved flow ({FILE} is missing); pass a folder that cflow.save or training.fit wrote."
    )


def load(path: str | os.PathLike, *, device: str | torch.device = "cpu") -> nn.Module:
    """Loads a flow that :func:`save` wrote, with its weights and dtypes, in evaluation mode.

    ``path`` may also be the folder of a run, ``fit(out=path)``. Then the flow is the one in its folder ``model``, or,
    if the run was interrupted, the one of its newest checkpoint.

    Custom classes must be registered (imported) first. No code of the file is executed.

    Args:
        path: the folder of a saved flow or of a run.
        device: the device of the loaded flow.

    Raises:
        FileNotFoundError: if ``path`` contains no saved flow.
        ValueError: for a damaged or foreign file, an unknown class, sizes that are too large for the saved tensors, or
            tensors that do not fit.
    """
    folder = find(path)
    if (folder / EARLIER).is_file():
        raise ValueError(
            f"load({str(path)!r}): {folder} has an earlier format ({EARLIER}); use the version that wrote it, or train "
            f"again."
        )
    try:
        tensors, document = read_tensors(folder / FILE)
    except ValueError as error:
        raise ValueError(f"load({str(path)!r}): {error} Take a copy, or save the flow again.") from error
    where = f"load({str(path)!r}): {folder / FILE}"
    if document.get("format") != FORMAT or not isinstance(document.get("flow"), dict):
        raise ValueError(f"{where} does not have the format {FORMAT!r}; save the flow with this version.")
    try:
        with Budget(len(tensors), sum(each.nbytes for each in tensors.values())):
            flow = _build(document["flow"], tensors)
    except ValueError as error:
        raise ValueError(f"{where} cannot be built: {error}") from error
    except (TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        said = str(error).split("\n")[0]
        raise ValueError(f"{where} does not describe a flow ({type(error).__name__}: {said:.200}).") from error
    if not isinstance(flow, nn.Module):
        raise ValueError(f"{where} describes a {type(flow).__name__}, not a flow.")
    dtype = getattr(torch, str(document.get("dtype")), None)
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        flow.to(dtype)
    _fill(flow, tensors, where)
    return flow.to(device).eval()


def _identity(value: Tensor) -> tuple:
    value = value.to_local() if hasattr(value, "to_local") else value  # a sharded tensor itself has no address
    return value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, str(value.device)


def _independent(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors that share memory (tied weights): safetensors stores each one separately."""
    seen: set[int] = set()
    result = {}
    for name, value in tensors.items():
        start = value.untyped_storage().data_ptr()
        value = value.detach().cpu().contiguous()
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        result[name] = value.clone() if start in seen or not whole else value
        seen.add(start)
    return result


def _describe(value: Any, where: str, tensors: dict[str, Tensor], known: dict[tuple, str]) -> Any:
    """Converts a value to JSON; tensors are added to ``tensors``, or referred to by name if the state has them."""
    nested = lambda part, name: _describe(part, f"{where}.{name}", tensors, known)
    value = plain(registry.uncompiled(value))
    if isinstance(value, Plain):
        return value
    if isinstance(value, Tensor):
        name = known.get(_identity(value)) if value.numel() else None
        if name is None:
            name = f"argument.{where}"
            tensors[name] = value.detach().cpu().contiguous().clone()
        if isinstance(value, nn.Parameter):
            return {"$tensor": name, "trained": value.requires_grad}
        return {"$tensor": name}
    if isinstance(value, Size):
        return {"$size": list(value)}
    if isinstance(value, nn.ModuleList | nn.ModuleDict):
        named = value.items() if isinstance(value, nn.ModuleDict) else enumerate(value)
        parts = {str(key): nested(part, str(key)) for key, part in named}
        return {"$modules": type(value).__name__, "parts": parts}
    if isinstance(value, tuple):
        return {"$tuple": [nested(part, str(i)) for i, part in enumerate(value)]}
    if isinstance(value, list):
        return [nested(part, str(i)) for i, part in enumerate(value)]
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"save: {where} is a dict with keys that are not strings; use strings.")
        return {"$dict": {key: nested(part, key) for key, part in value.items()}}
    if callable(value) and not isinstance(value, nn.Module) and type(value).__name__ in ("function", "method", "type"):
        raise ValueError(
            f"save: {where} is the function {getattr(value, '__qualname__', value)!r}, which cannot be saved; write "
            "it as a class and mark it with @cflow.register."
        )
    try:
        arguments = registry.configuration(value) if registry.name_of(type(value)) else {}
    except ValueError as error:
        raise ValueError(f"save: {where}: {error}") from error
    node = {
        "$class": registry.name_of(type(value)),
        "arguments": {name: nested(part, name) for name, part in arguments.items()},
    }
    beside = {name: nested(part, name) for name, part in registry.kept(value).items()}
    return {**node, "kept": beside} if beside else node


def _build(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Plain):
        return node
    if isinstance(node, list):
        return [_build(part, tensors) for part in node]
    match node:
        case {"$class": str(name), "arguments": dict(arguments), **rest}:
            built = {key: _build(part, tensors) for key, part in arguments.items()}
            made = registry.build(registry.lookup(name), built)
            beside = rest.get("kept", {})
            if set(beside) != set(registry.kept(made)):
                raise ValueError(
                    f"{name} was saved with attributes {sorted(beside)}, but has {sorted(registry.kept(made))}; save "
                    f"it again."
                )
            for key, part in beside.items():
                setattr(made, key, _build(part, tensors))
            return made
        case {"$tensor": str(name), **rest}:
            if name not in tensors:
                raise ValueError(f"the tensor {name!r} is missing; the save is incomplete.")
            value = tensors[name].clone()  # so that an argument never shares memory with the state
            return nn.Parameter(value, requires_grad=bool(rest["trained"])) if "trained" in rest else value
        case {"$tuple": list(parts)}:
            return tuple(_build(part, tensors) for part in parts)
        case {"$modules": str(kind), "parts": dict(parts)} if kind in ("ModuleDict", "ModuleList"):
            built = {key: _build(part, tensors) for key, part in parts.items()}
            return nn.ModuleDict(built) if kind == "ModuleDict" else nn.ModuleList(built.values())
        case {"$size": list(sizes)}:
            return Size(sizes)
        case {"$dict": dict(parts)}:
            return {key: _build(part, tensors) for key, part in parts.items()}
        case {"$dtype": str(name)} if isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
    raise ValueError(f"{json.dumps(node)[:80]} cannot be part of a saved flow.")


def _fill(flow: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Puts the saved tensors into the module, with their dtypes."""
    saved = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    own = flow.state_dict()
    kind = lambda value: (value.shape, value.is_floating_point(), value.is_complex())
    wrong = [name for name in own.keys() & saved.keys() if kind(own[name]) != kind(saved[name])]
    if own.keys() != saved.keys() or wrong:
        parts = {
            "missing": sorted(own.keys() - saved.keys()),
            "unexpected": sorted(saved.keys() - own.keys()),
            "of another shape or kind": sorted(wrong),
        }
        shown = "; ".join(f"{kind}: {', '.join(names[:3])}" for kind, names in parts.items() if names)
        raise ValueError(f"{where}: the tensors do not fit the flow ({shown}); a class may have changed since.")
    tied = len(list(flow.parameters())) != len(list(flow.named_parameters(remove_duplicate=False)))
    flow.load_state_dict(saved, assign=not tied)  # assigning keeps each saved dtype, but separates shared weights

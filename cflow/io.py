"""Saving and loading: every tensor in safetensors, the constructor arguments as a JSON tree.

Nothing is unpickled. A file can only name registered classes (:func:`cflow.register`), and only their constructors run.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor, nn

from cflow import registry

__all__ = ["load", "save"]

FORMAT = "cflow 1"
CONFIG, TENSORS = "flow.json", "flow.safetensors"
Plain = (str, int, float, bool, type(None))


def save(flow: nn.Module, path: str | os.PathLike) -> Path:
    """Writes a flow (or any registered module) to the folder ``path``: ``flow.json`` and ``flow.safetensors``.

    The folder appears whole or not at all: files are written beside it and renamed. An older save is replaced.

    Raises:
        ValueError: where a part is not registered or cannot be written (a function, say); the message names the part.
        FileExistsError: where ``path`` exists and holds something else.

    Example:
        >>> import cflow, tempfile
        >>> from cflow import bases, fields, paths
        >>> flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Cosine("x1"))
        >>> folder = cflow.save(flow, tempfile.mkdtemp() + "/model")
        >>> cflow.load(folder).path
        Cosine(predict='x1')
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not (path.is_dir() and {each.name for each in path.iterdir()} <= {CONFIG, TENSORS}):
        raise FileExistsError(f"save({str(path)!r}): that exists and is not a saved flow; choose another path.")
    from safetensors.torch import save_file

    state = {f"state.{name}": value for name, value in flow.state_dict().items()}
    known = {_identity(value): name for name, value in state.items() if value.numel()}
    tensors = _independent(state)
    tree = _describe(flow, type(flow).__qualname__, tensors, known)
    # Buffers outside the state dict (tables, devices) follow the one dtype of all floating tensors, if there is one.
    held = (*flow.parameters(), *flow.buffers())
    dtypes = {str(each.dtype).removeprefix("torch.") for each in held if each.is_floating_point()}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    document = {"format": FORMAT, "flow": tree, "dtype": dtype, "training": flow.training}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        save_file(tensors, os.path.join(folder, TENSORS))
        Path(folder, CONFIG).write_text(json.dumps(document, indent=1) + "\n")
        new = Path(folder, "new")
        new.mkdir()
        for name in (CONFIG, TENSORS):
            os.replace(Path(folder, name), new / name)
        if path.exists():
            os.replace(path, Path(folder, "old"))
        os.replace(new, path)
    return path


def load(path: str | os.PathLike, *, device: str | torch.device = "cpu") -> nn.Module:
    """Rebuilds what :func:`save` wrote, with its weights, dtypes and mode, on ``device``.

    Classes of one's own must be registered (imported) first.

    Raises:
        FileNotFoundError: where ``path`` holds no saved flow.
        ValueError: for a damaged or foreign file, an unknown class, or tensors that do not fit; nothing is executed.
    """
    path = Path(path)
    if not (path / CONFIG).is_file() or not (path / TENSORS).is_file():
        hint = " Its folder `model` does." if (path / "model" / CONFIG).is_file() else ""
        raise FileNotFoundError(
            f"load({str(path)!r}): no {CONFIG} and {TENSORS} there, so it holds no saved flow.{hint}"
        )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        document = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        # Copies are aligned in memory, as fresh parameters are; sums then round as they did before saving.
        tensors = {name: value.clone() for name, value in load_file(path / TENSORS, device=str(device)).items()}
    except (ValueError, SafetensorError, RecursionError) as error:
        raise ValueError(f"load({str(path)!r}): the files are damaged ({error}); save the flow again.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT or not isinstance(document.get("flow"), dict):
        raise ValueError(f"load({str(path)!r}): {CONFIG} is not a saved flow of the format {FORMAT!r}.")
    try:
        flow = _build(document["flow"], tensors)
    except (TypeError, KeyError, IndexError, AttributeError, RecursionError, RuntimeError, OverflowError) as error:
        raise ValueError(f"load({str(path)!r}): {CONFIG} does not describe a flow ({error!r}).") from error
    if not isinstance(flow, nn.Module):
        raise ValueError(f"load({str(path)!r}): {CONFIG} describes a {type(flow).__name__}, not a flow.")
    dtype = getattr(torch, str(document.get("dtype")), None)
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        flow.to(dtype)
    _fill(flow, tensors, path)
    return flow.to(device).train(bool(document.get("training", False)))


def _identity(value: Tensor) -> tuple:
    return value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, str(value.device)


def _independent(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors that share memory (tied weights): safetensors stores each by itself."""
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
    """Writes a value as JSON; tensors go to ``tensors``, or are named where the state holds them already."""
    nested = lambda part, name: _describe(part, f"{where}.{name}", tensors, known)
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
            raise ValueError(f"save: {where} is a dict with keys that are not strings, which JSON does not hold.")
        return {"$dict": {key: nested(part, key) for key, part in value.items()}}
    if callable(value) and not isinstance(value, nn.Module) and type(value).__name__ in ("function", "method", "type"):
        raise ValueError(
            f"save: {where} is the function {getattr(value, '__qualname__', value)!r}, which is code, not data; write "
            "it as a class with a constructor and mark it with @cflow.register."
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
                    f"load: {name} is saved with {sorted(beside)} beside its arguments, and the class keeps "
                    f"{sorted(registry.kept(made))}; save it again with this version."
                )
            for key, part in beside.items():
                setattr(made, key, _build(part, tensors))
            return made
        case {"$tensor": str(name), **rest}:
            if name not in tensors:
                raise ValueError(f"load: the tensor {name!r} is missing from {TENSORS}; the save is incomplete.")
            value = tensors[name].clone()  # an argument never shares memory with the state
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
    raise ValueError(f"load: {json.dumps(node)[:80]} is nothing that {CONFIG} may hold.")


def _fill(flow: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Gives the module the saved tensors, dtype included."""
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
        raise ValueError(
            f"load({str(path)!r}): the tensors do not fit the flow that {CONFIG} describes ({shown}); a class may have "
            f"changed since it was saved."
        )
    tied = len(list(flow.parameters())) != len(list(flow.named_parameters(remove_duplicate=False)))
    flow.load_state_dict(saved, assign=not tied)  # assigning keeps each saved dtype, but would untie shared weights

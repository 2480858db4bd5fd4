"""The tensors that a function depends on, found in the objects that it refers to and in its graph."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from cflow.solvers.problem import Problem

__all__ = ["held_by", "parameters_of", "refuse_strangers", "wanted_parameters"]

Plain = bool | int | float | complex | str | bytes | None


def parameters_of(f: Any) -> tuple[Tensor, ...]:
    """Returns the tensors that require gradients and that a function refers to.

    Searches modules, bound methods, partial functions, closures, defaults, the globals that a function uses, and the
    attributes of callable objects and dataclasses. It does not search imported functions, or objects reached in another
    way.
    """
    return tuple(tensor for tensor in held_by(f)[0] if tensor.requires_grad)


def held_by(f: Any) -> tuple[list[Tensor], list[Plain]]:
    """Returns all tensors, each once, and all plain values that a function refers to (a module's mode is one).

    Searches like :func:`parameters_of`, always in the same order.
    """
    tensors: list[Tensor] = []
    plain: list[Plain] = []
    _search(f, tensors, plain, set())
    return tensors, plain


def _search(thing: Any, tensors: list[Tensor], plain: list[Plain], seen: set[int]) -> None:
    if isinstance(thing, Plain):
        plain.append(thing)
        return
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        tensors.append(thing)
        return
    # The wrapper of torch.compile changes as it compiles: search the original.
    original = getattr(thing, "_torchdynamo_orig_callable", None) or getattr(thing, "_orig_mod", None)
    if original is not None:
        _search(original, tensors, plain, seen)
        return
    inside: list[Any] = []
    if isinstance(thing, nn.Module):
        inside += [*thing._parameters.values(), *thing._buffers.values(), *thing._modules.values()]
        inside += [value for name, value in vars(thing).items() if not name.startswith("_")]
    elif isinstance(thing, functools.partial):
        inside += [thing.func, *thing.args, *thing.keywords.values()]
    elif isinstance(thing, list | tuple | set | frozenset):
        inside += thing
    elif isinstance(thing, dict):
        inside += thing.values()
    elif hasattr(thing, "__self__") and hasattr(thing, "__func__"):
        inside += [thing.__self__, thing.__func__]
    elif hasattr(thing, "__code__"):
        for cell in thing.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty cell
                inside.append(cell.cell_contents)
        inside += [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        named = [thing.__globals__[name] for name in thing.__code__.co_names if name in thing.__globals__]
        # Functions of other files usually belong to a library: they are not searched.
        inside += [each for each in named if getattr(each, "__globals__", thing.__globals__) is thing.__globals__]
    elif is_dataclass(thing) and not isinstance(thing, type):
        inside += [getattr(thing, each.name) for each in fields(thing)]
    elif callable(thing) and not isinstance(thing, type) and hasattr(thing, "__dict__"):
        inside += vars(thing).values()
    for each in inside:
        _search(each, tensors, plain, seen)


def wanted_parameters(problem: Problem) -> list[Tensor]:
    """Lists the parameters that require gradients, each once: ``params``, or those that ``f`` refers to."""
    params = parameters_of(problem.f) if problem.params is None else problem.params
    params = list({id(each): each for each in params if each.requires_grad}.values())
    for each in params:
        if each.grad_fn is not None and _reaches(each, params):
            raise ValueError(
                f"{problem.owner}.solve(gradient={problem.gradient!r}): a tensor of shape {list(each.shape)} that f "
                f"uses is computed from another one, so a gradient is counted twice; pass params=(...) without one of "
                f"the two."
            )
    return params


def refuse_strangers(problem: Problem, values: Sequence[Tensor], known: Sequence[Tensor]) -> None:
    """Raises if the graph of some values reaches a tensor that requires a gradient and is not known.

    Otherwise its gradient would be lost without notice.
    """
    values = [value for value in values if value.requires_grad]
    leaves = {id(tensor) for tensor in known}
    stranger = next((value for value in values if value.is_leaf and id(value) not in leaves), None)
    for node in _nodes([value.grad_fn for value in values], {tensor.grad_fn for tensor in known}):
        if type(node).__name__ == "AccumulateGrad" and id(node.variable) not in leaves:
            stranger = node.variable
            break
    if stranger is not None:
        raise RuntimeError(
            f"{problem.owner}.solve(gradient={problem.gradient!r}): f uses a tensor of shape {list(stranger.shape)} "
            f"that requires a gradient but is not in args or params; add it there, or call requires_grad_(False)."
        )


def _reaches(tensor: Tensor, others: list[Tensor]) -> bool:
    """Returns whether a tensor was computed from one of some others."""
    ends = {id(other) for other in others if other.grad_fn is None}
    ends |= {other.grad_fn for other in others if other is not tensor and other.grad_fn is not None}
    return any(
        node in ends or (type(node).__name__ == "AccumulateGrad" and id(node.variable) in ends)
        for node in _nodes([tensor.grad_fn], set())
    )


def _nodes(roots: list, stops: set) -> Iterator[Any]:
    """Yields the nodes of a graph from its roots, without the nodes to stop at and those behind them."""
    todo, seen = list(roots), {None, *stops}
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            yield node
            todo += [after for after, _ in node.next_functions]

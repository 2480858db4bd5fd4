"""Which tensors a function depends on: found by looking through what it refers to, and through its graph."""

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
    """Finds the tensors that require gradients and that a function refers to.

    Looks through modules, bound methods, partial functions, closures, defaults, the globals that a function names, and
    the attributes of callable objects and dataclasses; not through what is imported or reached in another way.
    """
    return tuple(tensor for tensor in held_by(f)[0] if tensor.requires_grad)


def held_by(f: Any) -> tuple[list[Tensor], list[Plain]]:
    """Finds all tensors, each once, and all plain values that a function refers to: a module's mode is one.

    Looks where :func:`parameters_of` does, in the same order each time.
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
    # What torch.compile wraps around a function or module changes as it compiles.
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
            with contextlib.suppress(ValueError):  # a cell that is not filled yet
                inside.append(cell.cell_contents)
        inside += [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        named = [thing.__globals__[name] for name in thing.__code__.co_names if name in thing.__globals__]
        # Functions of other files are a library's, as a rule, and lead far away.
        inside += [each for each in named if getattr(each, "__globals__", thing.__globals__) is thing.__globals__]
    elif is_dataclass(thing) and not isinstance(thing, type):
        inside += [getattr(thing, each.name) for each in fields(thing)]
    elif callable(thing) and not isinstance(thing, type) and hasattr(thing, "__dict__"):
        inside += vars(thing).values()
    for each in inside:
        _search(each, tensors, plain, seen)


def wanted_parameters(problem: Problem) -> list[Tensor]:
    """Lists the parameters that require gradients, each once; those that ``f`` refers to unless some were given."""
    params = parameters_of(problem.f) if problem.params is None else problem.params
    params = list({id(each): each for each in params if each.requires_grad}.values())
    for each in params:
        if each.grad_fn is not None and _reaches(each, params):
            raise ValueError(
                f"{problem.owner}.solve(gradient={problem.gradient!r}): a tensor of shape {list(each.shape)} among "
                f"params, or in f's closure, was computed from another one, whose gradient would be counted twice; "
                f"pass params=(...) without one of the two."
            )
    return params


def refuse_strangers(problem: Problem, values: Sequence[Tensor], known: Sequence[Tensor]) -> None:
    """Raises if the graph of some values reaches a tensor that requires a gradient and is not known.

    Its gradient would be lost silently.
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
            f"{problem.owner}.solve(gradient={problem.gradient!r}): f depends on a tensor of shape "
            f"{list(stranger.shape)} that requires a gradient and is neither in args nor among params, so its gradient "
            f"would be lost; pass params=(...) with every such tensor, hand on what varies with the sample through "
            f"args=, or freeze it with requires_grad_(False)."
        )


def _reaches(tensor: Tensor, others: list[Tensor]) -> bool:
    """Says whether a tensor was computed from one of some others."""
    ends = {id(other) for other in others if other.grad_fn is None}
    ends |= {other.grad_fn for other in others if other is not tensor and other.grad_fn is not None}
    return any(
        node in ends or (type(node).__name__ == "AccumulateGrad" and id(node.variable) in ends)
        for node in _nodes([tensor.grad_fn], set())
    )


def _nodes(roots: list, stops: set) -> Iterator[Any]:
    """Walks a graph from its roots, without the nodes to stop at and what is behind them."""
    todo, seen = list(roots), {None, *stops}
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            yield node
            todo += [after for after, _ in node.next_functions]

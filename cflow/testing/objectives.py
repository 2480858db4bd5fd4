"""Conformance of objectives."""

from __future__ import annotations

import copy
import json
import threading
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cflow.modes import evaluating
from cflow.record import Teaches, TrainingEntry
from cflow.registry import outline
from cflow.testing.checks import demand

__all__ = ["check_objective"]


def check_objective(objective, flow, x: Tensor | int | None = None, context: Tensor | None = None) -> None:
    """Checks an objective on a flow that it can train.

    A loss is one finite number per item and has gradients to weights of the flow. All draws come from the generator.
    ``prepare`` returns the same in another thread. The logged numbers are those in ``metric_names``. **Computing a loss
    changes nothing**: weights, buffers, modes, the record of training and all other attributes of flow and objective
    stay the same, with and without gradients, in training and in evaluation mode. A copy is the same objective, and its
    description can be written as JSON.

    Args:
        objective: the objective.
        flow: a flow that it trains, without layers that draw (dropout) or learn from every batch (BatchNorm).
        x: data ``[B, *event]`` with ``B >= 2`` (for instance pairs, if ``objective.samples_per_item`` is 2); for an
            objective that learns from the flow's own samples, the number of items.
        context: contexts ``[B, *context_shape]``, for a conditional flow.

    Raises:
        AssertionError: if a property fails; the message states which.

    Example:
        >>> import cflow
        >>> from cflow import bases, fields, objectives, paths
        >>> flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
        >>> check_objective(objectives.FlowMatching(), flow, torch.randn(4, 2))
    """
    name = type(objective).__name__
    count = x if isinstance(x, int) else len(tree_leaves(context if x is None else x)[0])
    draw = lambda each=objective: each(flow, x, context, generator=torch.Generator().manual_seed(0))
    before = _state(flow), _state(objective)
    everywhere = torch.get_rng_state()

    loss = draw()
    demand(loss.shape == (count,), f"{name}: the loss has shape [{count}], not {list(loss.shape)}")
    demand(loss.is_floating_point() and bool(loss.isfinite().all()), f"{name}: the loss is finite")
    demand(torch.equal(draw(), loss), f"{name}: the loss is the same for the same generator")
    demand(torch.equal(torch.get_rng_state(), everywhere), f"{name}: all draws come from the generator")
    demand(set(objective.metrics) == set(objective.metric_names), f"{name}: metric_names lists the logged numbers")
    trained = [each for part in (flow, objective) for each in part.parameters() if each.requires_grad]
    gradients = torch.autograd.grad(loss.sum(), trained, allow_unused=True)
    demand(any(each is not None and bool(each.any()) for each in gradients), f"{name}: a gradient reaches a weight")
    demand(all(each is None or bool(each.isfinite().all()) for each in gradients), f"{name}: gradients are finite")
    _unchanged(before, flow, objective, f"{name}: a loss")

    with evaluating(flow), torch.no_grad():
        quiet = _state(flow), _state(objective)
        draw()
        _unchanged(quiet, flow, objective, f"{name}: a loss in evaluation mode, without gradients,")

    demand(torch.equal(draw(copy.deepcopy(objective)), loss), f"{name}: a copy is the same objective")
    _check_prepared(objective, flow, x, context, name)
    json.dumps(outline(objective))
    entry = objective.entry()
    sound = isinstance(entry, TrainingEntry) and entry.teaches in get_args(Teaches)
    demand(sound, f"{name}: its entry is a TrainingEntry with a valid teaches")
    demand(entry == objective.entry(), f"{name}: its entry is always the same")
    _unchanged(before, flow, objective, f"{name}: all of this")


def _check_prepared(objective, flow, x, context, name: str) -> None:
    """Checks that ``prepare`` returns the same in another thread, and needs no gradients."""
    data = torch.empty(x, 0) if isinstance(x, int) else x
    if data is None:
        data = torch.empty(len(tree_leaves(context)[0]), 0)
    results: list[Any] = []

    def prepare() -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            batch = objective.make_batch(flow, data, context, generator)
        results.append(_frozen(batch))

    prepare()
    thread = threading.Thread(target=prepare)
    thread.start()
    thread.join()
    demand(len(results) == 2 and _same(*results), f"{name}: preparation returns the same in another thread")


def _unchanged(before: tuple, flow, objective, what: str) -> None:
    for owner, old, new in zip(("flow", "objective"), before, (_state(flow), _state(objective))):
        demand(old.keys() == new.keys(), f"{what} adds or removes attributes of the {owner}")
        changed = [key for key in old if not _same(old[key], new[key])]
        demand(not changed, f"{what} changes {', '.join(changed[:3])} of the {owner}")


def _state(module: nn.Module) -> dict[str, Any]:
    """Copies all attributes of a module and of the modules in it, except the metrics of the last loss."""
    found: dict[str, Any] = {}
    for prefix, part in module.named_modules():
        held = {key: value for key, value in vars(part).items() if key not in ("_modules", "metrics", "_parameters")}
        held |= part._parameters
        found |= {f"{prefix}.{key}".removeprefix("."): _frozen(value) for key, value in held.items()}
    return found


def _frozen(value: Any, depth: int = 6) -> Any:
    """Copies a value, so that later changes can be detected."""
    if isinstance(value, Tensor):
        return value.detach().clone(), value.requires_grad
    if isinstance(value, str | int | float | bool | None | torch.Size | torch.dtype | type):
        return value
    if isinstance(value, dict):
        return {key: _frozen(each, depth - 1) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_frozen(each, depth - 1) for each in value]
    if isinstance(value, nn.Module) or not hasattr(value, "__dict__") or depth == 0:
        return id(value)
    return type(value).__qualname__, {key: _frozen(each, depth - 1) for key, each in vars(value).items()}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    return one == other or (one != one and other != other)

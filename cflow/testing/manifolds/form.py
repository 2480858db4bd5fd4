"""The form of the methods: shapes, dtypes, broadcasting, masks, inputs that stay as they are, and copies."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import Size, Tensor, nn

from cflow.manifolds import Manifold
from cflow.registry import build, configuration, register
from cflow.testing.checks import demand
from cflow.testing.copies import check_copies, draws_nothing
from cflow.testing.manifolds.points import Sample, expand

__all__ = ["check_copied", "check_form"]

BATCHES = (((2, 1), (3,)), ((), ()), ((), (3,)), ((0,), (0,)))


@register("testing.WithManifold")
class WithManifold(nn.Module):
    """Has a manifold as an argument, as bases and flows do."""

    def __init__(self, manifold: Manifold):
        super().__init__()
        self.manifold = manifold


def check_form(sample: Sample) -> None:
    manifold, event = sample.manifold, sample.event
    demand(isinstance(event, Size), f"event_shape is a torch.Size, not {type(event).__name__}")
    demand(1 <= manifold.dim <= event.numel(), f"dim is at most {event.numel()}, not {manifold.dim}")
    demand(isinstance(manifold.flat, bool), "flat is a bool")
    demand(manifold.origin(dtype=sample.dtype).shape == event, "origin is a point [*event]")
    for first, second in BATCHES if sample.dtype == torch.float64 else BATCHES[:1]:
        x, y = sample.points(*first), sample.points(*second)
        demand(x.shape == (*first, *event), f"points of a batch {first} have shape {(*first, *event)}")
        batch = torch.broadcast_shapes(first, second)
        w = sample.normal(*second, *event)
        t = torch.rand(batch, generator=sample.generator, dtype=sample.dtype)
        for name, method, inputs, is_point in _methods(manifold, x, y, w, t):
            _check_call(sample, name, method, inputs, batch, is_point)
    _check_masks(sample)


def _methods(manifold: Manifold, x: Tensor, y: Tensor, w: Tensor, t: Tensor):
    """Yields methods with arguments of different batches, and whether they return events."""
    u = manifold.to_tangent(x, w)
    yield "exp", manifold.exp, (x, u), True
    yield "log", manifold.log, (x, y), True
    yield "dist", manifold.dist, (x, y), False
    yield "to_tangent", manifold.to_tangent, (x, w), True
    yield "inner", manifold.inner, (x, u, u), False
    yield "transport", manifold.transport, (x, y, u), True
    yield "geodesic (the point)", lambda *each: manifold.geodesic(*each)[0], (x, y, t), True
    yield "geodesic (the velocity)", lambda *each: manifold.geodesic(*each)[1], (x, y, t), True
    yield "geodesic at one time", lambda *each: manifold.geodesic(*each, t.new_tensor(0.3))[1], (x, y), True
    yield "project", manifold.project, (u + x,), True


def _check_call(sample: Sample, name: str, method: Callable, inputs, batch, is_point: bool) -> None:
    rank, event = len(sample.event), sample.event if is_point else Size()
    before = [each.clone() for each in inputs]
    value = draws_nothing(lambda: method(*inputs), name)
    demand(all(torch.equal(each, was) for each, was in zip(inputs, before)), f"{name} does not change its arguments")
    demand(value.shape == (*batch, *event), f"{name} has shape {(*batch, *event)}, not {tuple(value.shape)}")
    demand(value.dtype == sample.dtype, f"{name} of {sample.dtype} has this dtype, not {value.dtype}")
    ranks = (rank, rank, 0 if "geodesic" in name else rank)
    full = [each.expand((*batch, *each.shape[each.dim() - r :])) for each, r in zip(inputs, ranks)]
    sample.same(value, method(*full), f"{name} of arguments that broadcast is that of expanded ones")
    if batch and batch[0] > 1:
        one = method(*(each[-1:] for each in full))
        sample.same(value[-1:], one, f"{name} of a point does not depend on the others")


def _check_masks(sample: Sample) -> None:
    manifold, event = sample.manifold, sample.event
    x, y, w = sample.points(4), sample.points(4), sample.normal(4, *event)
    u, t = manifold.to_tangent(x, w), torch.full((4,), 0.3, dtype=sample.dtype)
    keep = torch.tensor([True, False, True, False])
    mask = expand(keep, x).expand_as(x)
    for name, method, inputs, outside in (
        ("exp", manifold.exp, (x, u), x),
        ("log", manifold.log, (x, y), torch.zeros_like(x)),
        ("dist", manifold.dist, (x, y), t.new_zeros(4)),
        ("project", manifold.project, (x + w,), x + w),
        ("to_tangent", manifold.to_tangent, (x, w), torch.zeros_like(x)),
        ("inner", manifold.inner, (x, u, u), t.new_zeros(4)),
        ("transport", manifold.transport, (x, y, u), torch.zeros_like(x)),
        ("geodesic", lambda *each, mask=None: manifold.geodesic(*each, mask=mask)[0], (x, y, t), x),
        ("geodesic", lambda *each, mask=None: manifold.geodesic(*each, mask=mask)[1], (x, y, t), torch.zeros_like(x)),
    ):
        value, whole = method(*inputs, mask=mask), method(*inputs)
        sample.same(value[keep], whole[keep], f"{name} inside a mask is that without it")
        sample.same(value[~keep], outside[~keep], f"{name} outside a mask neither moves nor counts")


def check_copied(sample: Sample, saved: bool) -> None:
    manifold, x, y = sample.manifold, sample.points(3), sample.points(3)
    if isinstance(manifold, nn.Module):
        check_copies(manifold, lambda each: each.log(x, y), "manifold", saved)
    else:
        demand(dataclasses.is_dataclass(manifold) and manifold.__dataclass_params__.frozen, "it is a frozen dataclass")
        for other, what in (
            (copy.deepcopy(manifold), "a deep copy"),
            (build(type(manifold), configuration(manifold)), "a copy rebuilt from its arguments"),
        ):
            demand(other == manifold and hash(other) == hash(manifold), f"{what} is equal")
    check_copies(WithManifold(manifold), lambda each: each.manifold.log(x, y), "manifold", saved)

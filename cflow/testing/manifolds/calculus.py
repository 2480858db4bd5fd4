"""Derivatives: finite everywhere, the same in both modes, and right at coinciding points; divergences; volumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cflow.shapes import rows
from cflow.testing.checks import close, demand
from cflow.testing.manifolds.points import Sample

__all__ = ["check_derivatives", "check_divergence_of_fields", "check_volume_elements"]

COUNT = 5


def check_derivatives(sample: Sample) -> None:
    x = sample.points(COUNT)
    cases = dict(_cases(sample, x))
    x, y = torch.cat([x] * len(cases)), torch.cat(list(cases.values()))
    for name, function, inputs in _functions(sample, x, y):
        _check_finite(sample, name, list(cases), function, inputs)
    _check_identity(sample, x[:COUNT])


def _cases(sample: Sample, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    manifold, e = sample.manifold, sample.directions(x)
    yield "two points", sample.points(COUNT)
    yield "coinciding points", x.clone()
    yield "points within rounding", manifold.exp(x, 1e-3 * sample.tolerance * e)
    yield "points 1e-6 apart", manifold.geodesic(x, sample.points(COUNT), x.new_tensor(1e-6))[0]
    if 0 < manifold.injectivity < math.inf:
        yield "the cut locus", manifold.exp(x, manifold.injectivity * e)


def _functions(sample: Sample, x: Tensor, y: Tensor) -> Iterator[tuple[str, Callable, tuple[Tensor, ...]]]:
    manifold = sample.manifold
    u, t = manifold.log(x, y), torch.full_like(manifold.dist(x, y), 0.3)
    v = sample.tangents(x)
    yield "exp", manifold.exp, (x, u)
    yield "log", manifold.log, (x, y)
    yield "dist", manifold.dist, (x, y)
    yield "transport", manifold.transport, (x, y, v)
    yield "inner", manifold.inner, (x, u, v)
    yield "the point of geodesic", lambda *each: manifold.geodesic(*each)[0], (x, y, t)
    yield "the velocity of geodesic", lambda *each: manifold.geodesic(*each)[1], (x, y, t)
    yield "project", manifold.project, (x,)
    yield "to_tangent", manifold.to_tangent, (x, v)
    yield "log_volume_element", manifold.log_volume_element, (x,)


def _check_finite(sample: Sample, name: str, cases: list[str], function: Callable, inputs: tuple[Tensor, ...]) -> None:
    """Compares <w, J d> in forward mode with <J^T w, d> in reverse mode, row by row, and differentiates the latter."""

    def finite(values: tuple[Tensor, ...], what: str) -> None:
        for each in values:
            bad = (~rows(each).isfinite().all(1)).nonzero()
            where = cases[int(bad[0]) // COUNT] if len(bad) else ""
            demand(not len(bad), f"{name} at {where}: {what} finite ({sample.dtype})")

    inputs = tuple(each.detach().clone().requires_grad_() for each in inputs)
    directions = tuple(sample.normal(*each.shape) for each in inputs)
    value = function(*inputs)
    finite((value,), "the value is")
    if not value.requires_grad:
        return
    weights = sample.normal(*value.shape)
    gradients = torch.autograd.grad((value * weights).sum(), inputs, create_graph=True, materialize_grads=True)
    finite(gradients, "gradients are")
    products = [rows(each * d) for each, d in zip(gradients, directions)]
    reverse = sum(each.sum(1) for each in products)
    with torch.no_grad():
        _, change = torch.func.jvp(function, tuple(each.detach() for each in inputs), directions)
        finite((change,), "derivatives in forward mode are")
        forward = rows(change * weights)
        # Parts of a point may cancel, so rounding is measured against the sum of their sizes.
        size = 1 + forward.abs().sum(1) + sum(each.abs().sum(1) for each in products)
        if sample.dtype == torch.float64:
            gaps = (forward.sum(1) - reverse) / size
            close(gaps, torch.zeros_like(gaps), 1e-9, f"{name}: derivatives in the two modes agree")
    if not reverse.requires_grad:
        return
    finite(torch.autograd.grad(reverse.sum(), inputs, materialize_grads=True), "second gradients are")


def _check_identity(sample: Sample, x: Tensor) -> None:
    """Checks that at u = 0 both exp and log have the identity as derivative, in both modes."""
    manifold, v = sample.manifold, sample.tangents(x)
    zero = torch.zeros_like(x)
    for name, function in (
        ("exp(x, u)", lambda u: manifold.exp(x, u)),
        ("log(x, exp(x, u))", lambda u: manifold.log(x, manifold.exp(x, u))),
    ):
        _, change = torch.func.jvp(function, (zero,), (v,))
        sample.same(manifold.to_tangent(x, change), v, f"the derivative of {name} at u = 0 is the identity", times=4)
        u = zero.clone().requires_grad_()
        w = sample.tangents(x)
        gradient = torch.autograd.grad((function(u) * w).sum(), u)[0]
        products = (rows(gradient * v).sum(1), rows(w * v).sum(1))
        sample.same(*products, f"the gradient of {name} at u = 0 is that of the identity", times=4)


def check_divergence_of_fields(sample: Sample) -> None:
    """Compares the ambient trace of v(project(x)) with derivatives along geodesics, in a frame."""
    manifold, x = sample.manifold, sample.points(COUNT)
    size = sample.event.numel()
    matrix, shift = sample.normal(size, size) / size**0.5, sample.normal(size)
    field = lambda z: manifold.to_tangent(z, torch.sin(rows(z) @ matrix + shift).reshape(z.shape))
    along = lambda function, d, at: torch.func.jvp(function, (at,), (d,))[1]
    axes = torch.eye(size, dtype=x.dtype).reshape(-1, 1, *sample.event)
    ambient = lambda z: field(manifold.project(z))
    trace = sum(rows(along(ambient, axis.expand_as(x), x) * axis).sum(1) for axis in axes)
    frame = manifold.frame(x)
    zero, framed = torch.zeros_like(x), 0
    for i in range(manifold.dim):
        e = frame[:, i]
        framed = framed + rows(along(lambda u: field(manifold.exp(x, u)), e, zero) * e).sum(1)
    sample.same(trace, framed, "the ambient trace of v(project(x)) is the divergence in frames", times=20 * size)


def check_volume_elements(sample: Sample) -> None:
    """Compares log_volume_element with inner, and log_det_exp with derivatives of exp."""
    manifold, x = sample.manifold, sample.points(COUNT)
    found, true = manifold.log_volume_element(x), _log_volume_element(sample, x)
    demand(found.shape == x.shape[:1], "log_volume_element has the shape of the batch")
    gaps = true - found
    sample.same(gaps, gaps[:1].expand_as(gaps), "log_volume_element is half the log det of inner on frame", times=20)
    u = sample.directions(x) * (0.6 * manifold.injectivity if 0 < manifold.injectivity < math.inf else 0.1)
    if not manifold.has_log_det_exp:
        return
    found = manifold.log_det_exp(x, u)
    y, frame = manifold.exp(x, u), manifold.frame(x)
    columns = [torch.func.jvp(lambda u: manifold.exp(x, u), (u,), (frame[:, i],))[1] for i in range(manifold.dim)]
    images = torch.stack([rows(each) for each in columns], 2)
    jacobian = manifold.frame(y).reshape(COUNT, manifold.dim, -1) @ images
    change = torch.linalg.slogdet(jacobian).logabsdet + _log_volume_element(sample, y) - true
    sample.same(found, change, "log_det_exp is the log determinant of the derivative of exp", times=100)
    none = manifold.log_det_exp(x, torch.zeros_like(x))
    sample.same(none, torch.zeros_like(none), "log_det_exp is zero at u = 0")


def _log_volume_element(sample: Sample, x: Tensor) -> Tensor:
    frame = sample.manifold.frame(x)
    gram = sample.manifold.inner(x.unsqueeze(1).unsqueeze(1), frame.unsqueeze(1), frame.unsqueeze(2))
    return 0.5 * torch.linalg.slogdet(gram).logabsdet

"""Geometry: exponential, logarithm, distance, geodesics, transport, frames and projections agree with each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflow.manifolds import Manifold
from cflow.shapes import rows
from cflow.testing.checks import demand
from cflow.testing.manifolds.points import Sample

__all__ = ["check_geometry"]

COUNT = 30
SHORT = (1e-6, 1e-3, 0.1)
# Of the injectivity radius, up to the cut locus.
LONG = (0.5, 0.9, 0.999, 1 - 1e-6, 1.0)


def check_geometry(sample: Sample) -> None:
    manifold = sample.manifold
    x, y = sample.points(COUNT), sample.points(COUNT)
    _check_distances(sample, x, y)
    _check_round_trip(sample, x, y, "two points")
    dist = manifold.dist(x, y)
    for r in SHORT:
        near, _ = manifold.geodesic(x, y, (r / dist).clamp(max=1))
        _check_round_trip(sample, x, near, f"points {r} apart")
        sample.same(manifold.dist(x, near), dist.clamp(max=r), f"the distance along a geodesic, {r}")
    _check_round_trip(sample, x, x, "coinciding points")
    demand((manifold.dist(x, x) <= sample.tolerance * (1 + float(x.abs().max()))).all(), "a point is at distance zero")
    _check_lengths(sample, x)
    _check_geodesics(sample, x, y)
    _check_transport(sample, x, y)
    _check_tangent_spaces(sample, x)


def _check_distances(sample: Sample, x: Tensor, y: Tensor) -> None:
    manifold, dist = sample.manifold, sample.manifold.dist(x, y)
    sample.same(dist, manifold.dist(y, x), "dist is symmetric")
    sample.same(dist, sample.length(x, manifold.log(x, y)), "dist is the length of log")
    pairs = manifold.dist(x[:5, None], y[None, :4])
    sample.same(manifold.cost(x[:5], y[:4]), pairs.square(), "cost is the squared distance of all pairs")


def _check_round_trip(sample: Sample, x: Tensor, y: Tensor, what: str) -> None:
    log = sample.manifold.log(x, y)
    sample.same_points(sample.manifold.exp(x, log), y, f"exp inverts log for {what}")
    sample.same(sample.manifold.to_tangent(x, log), log, f"log is tangent for {what}")


def _check_lengths(sample: Sample, x: Tensor) -> None:
    """Starts in all directions and goes to the cut locus."""
    manifold, radius = sample.manifold, sample.manifold.injectivity
    demand(radius >= 0, f"injectivity is a length, not {radius}")
    if radius == 0:
        return
    e = sample.directions(x)
    lengths = [1.0, 2.0] if math.isinf(radius) else [part * radius for part in LONG]
    for r in (*SHORT, *lengths):
        y = manifold.exp(x, r * e)
        what = f"a geodesic of length {r:.7g}"
        sample.same(manifold.dist(x, y), torch.full_like(y[(..., *[0] * len(sample.event))], r), f"dist on {what}")
        _check_round_trip(sample, x, y, what)
        if r <= 0.9 * radius:
            # Near the cut locus the direction is lost to rounding.
            sample.same(manifold.log(x, y), r * e, f"log inverts exp on {what}", times=20)


def _check_geodesics(sample: Sample, x: Tensor, y: Tensor) -> None:
    manifold, dist = sample.manifold, sample.manifold.dist(x, y)
    for t in (0.0, 0.3, 1.0):
        t = torch.full_like(dist, t)
        xt, ut = manifold.geodesic(x, y, t)
        point, velocity = Manifold._geodesic(manifold, x, y, t)
        sample.same_points(xt, point, "a geodesic passes exp(t log)")
        sample.same(ut, velocity, "its velocity is the derivative of exp(t log)", times=20)
        sample.same(manifold.to_tangent(xt, ut), ut, "the velocity is tangent", times=4)
        sample.same(sample.length(xt, ut), dist, "the speed is the distance, at all times", times=4)
    start, first = manifold.geodesic(x, y, torch.zeros_like(dist))
    end, last = manifold.geodesic(x, y, torch.ones_like(dist))
    sample.same_points(start, x, "a geodesic starts at x0")
    sample.same_points(end, y, "a geodesic ends at x1")
    sample.same(first, manifold.log(x, y), "it starts with the velocity log(x0, x1)", times=4)
    sample.same(last, -manifold.log(y, x), "it ends with the velocity -log(x1, x0)", times=20)


def _check_transport(sample: Sample, x: Tensor, y: Tensor) -> None:
    manifold, u, v = sample.manifold, sample.tangents(x), sample.tangents(x)
    moved = manifold.transport(x, y, u)
    sample.same(manifold.to_tangent(y, moved), moved, "transport returns a tangent vector", times=4)
    inner = manifold.inner(y, moved, manifold.transport(x, y, v))
    sample.same(inner, manifold.inner(x, u, v), "transport preserves inner products", times=20)
    sample.same(manifold.transport(y, x, moved), u, "transport there and back returns the vector", times=20)
    sample.same(manifold.transport(x, x, u), u, "transport to the same point returns the vector", times=4)
    along = manifold.transport(x, y, manifold.log(x, y))
    sample.same(along, -manifold.log(y, x), "transport takes log(x, y) to -log(y, x)", times=20)


def _check_tangent_spaces(sample: Sample, x: Tensor) -> None:
    manifold = sample.manifold
    frame = manifold.frame(x)
    demand(frame.shape == (len(x), manifold.dim, *sample.event), f"frame has shape {tuple(frame.shape)}")
    flat = frame.reshape(len(x), manifold.dim, -1)
    unit = torch.eye(manifold.dim, dtype=x.dtype).expand(len(x), -1, -1)
    sample.same(flat @ flat.mT, unit, "frame is orthonormal in the ambient space")
    sample.same(manifold.to_tangent(x.unsqueeze(1), frame), frame, "frame is tangent")
    onto = flat.mT @ flat
    w = sample.normal(*x.shape)
    nearest = (onto @ rows(w).unsqueeze(-1)).reshape(w.shape)
    sample.same(manifold.to_tangent(x, w), nearest, "to_tangent is the orthogonal projection onto the frame")
    sample.same(manifold.project(x), x, "project returns points of the manifold unchanged")
    off = manifold.project(x + 0.01 * sample.normal(*x.shape))
    sample.same(manifold.project(off), off, "project returns points of the manifold")
    few = x[:4]
    axes = torch.eye(sample.event.numel(), dtype=x.dtype).reshape(-1, 1, *sample.event)
    columns = [torch.func.jvp(manifold.project, (few,), (axis.expand_as(few),))[1] for axis in axes]
    forward = torch.stack([rows(each) for each in columns], -1)
    point = few.clone().requires_grad_()
    lines = [torch.autograd.grad((manifold.project(point) * axis).sum(), point)[0] for axis in axes]
    for jacobian, mode in ((forward, "forward"), (torch.stack([rows(each) for each in lines], 1), "reverse")):
        sample.same(jacobian, onto[:4], f"the Jacobian of project is the orthogonal projection, in {mode} mode")

"""The contract of manifolds: points, tangent vectors, geodesics and volumes, as functions of plain tensors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Size, Tensor

from cflow.manifolds.descent import descend, limited
from cflow.manifolds.numerics import expand_rows, norm
from cflow.manifolds.wrapped import log_wrapped_normal

__all__ = ["Manifold"]


class Manifold(ABC):
    r"""A Riemannian manifold whose points are tensors of an ambient space: the base class of manifolds.

    A subclass is a frozen dataclass (one that holds tables, as a mesh does, is also an ``nn.Module``) and writes the
    methods that start with an underscore. The public methods are the contract; they add masks and broadcast.

    Points and tangent vectors are tensors ``[*batch, *event]``, a tangent vector being a vector of the ambient space.
    Batches broadcast; times and distances are ``[*batch]``. Nothing is stored and no tensor is of a special class. All
    methods work in the dtype and on the device of the points, are differentiable, and give finite values and gradients
    where two points coincide or lie opposite each other. Where the shortest geodesic is not unique, :meth:`log` returns
    one of the shortest, always the same.

    Every method but :meth:`frame`, :meth:`log_volume_element`, :meth:`normal_velocity` and :meth:`cost` accepts
    ``mask``, broadcastable to ``[*batch, *event]``: entries outside do not move, their tangent vectors are zero, and
    they count for no distance and no inner product. It belongs to sets of points (:class:`cflow.manifolds.Power`), and
    must be constant over each point.

    Attributes:
        event_shape: the shape of one point in the ambient space.
        dim: the number of dimensions of the manifold.
        flat: whether straight lines of the ambient space between two points are geodesics, so that affine paths and all
            solvers stay on the manifold.
        is_group: whether it is a :class:`cflow.manifolds.LieGroup`, with a body frame at every point.
        log_volume: the logarithm of the volume of the whole manifold, in nats; infinite if the volume is.
        injectivity: the length up to which, at every point, :meth:`log` inverts :meth:`exp`. It is infinite where
            geodesics never meet again, and zero where a geodesic may leave the manifold, which has a boundary.

    Example:
        >>> from cflow import manifolds
        >>> sphere = manifolds.Sphere(2)
        >>> north, east = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> float(sphere.dist(north, east)), sphere.log(north, east)
        (1.5707..., tensor([1.5708, 0.0000, 0.0000]))
    """

    event_shape: Size
    dim: int
    flat: ClassVar[bool] = False
    is_group: ClassVar[bool] = False

    @property
    def picture(self) -> tuple[str, dict] | None:
        """The function of :mod:`cflow.plot` that draws points, and its options; None if there is none."""
        return None

    @property
    def log_volume(self) -> float:
        """The logarithm of the volume of the whole manifold, in nats; infinite if the volume is."""
        return math.inf

    @property
    def injectivity(self) -> float:
        """The length up to which, at every point, ``log`` inverts ``exp``."""
        return math.inf

    # What a subclass writes.

    @abstractmethod
    def _exp(self, x: Tensor, u: Tensor) -> Tensor: ...

    @abstractmethod
    def _log(self, x: Tensor, y: Tensor) -> Tensor: ...

    @abstractmethod
    def _project(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _to_tangent(self, x: Tensor, u: Tensor) -> Tensor: ...

    @abstractmethod
    def _transport(self, x: Tensor, y: Tensor, u: Tensor) -> Tensor: ...

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Computes the inner product of the ambient space: right for an isometric embedding."""
        return self._sum(u * v)

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        return norm(self.log(x, y), lambda u: self._inner(x, u, u))

    def _geodesic(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the point and its velocity by forward-mode differentiation of ``exp``, for the batch at once."""
        u, t = self._log(x0, x1), t.contiguous()  # one time expanded to the batch has one memory location
        along = lambda t: self._exp(x0, expand_rows(t, u) * u)
        return torch.func.jvp(along, (t,), (torch.ones_like(t),))

    # The contract.

    def exp(self, x: Tensor, u: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Returns the end of the geodesic that starts at ``x`` with velocity ``u`` and lasts a unit of time.

        Args:
            x: points ``[*batch, *event]``.
            u: tangent vectors at ``x``.
            mask: the entries that move. Default: None, all.
        """
        return self._exp(x, _masked(u, mask))

    def log(self, x: Tensor, y: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Returns the velocity at ``x`` of the shortest geodesic that reaches ``y`` in a unit of time.

        Args:
            x: points ``[*batch, *event]``.
            y: points ``[*batch, *event]``.
            mask: the entries that count. Default: None, all.
        """
        return _masked(self._log(x, y), mask)

    def dist(self, x: Tensor, y: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Computes the length of the shortest geodesic, ``[*batch]``.

        Args:
            x: points ``[*batch, *event]``.
            y: points ``[*batch, *event]``.
            mask: the entries that count. Default: None, all.
        """
        if mask is None:
            return self._dist(x, y)
        u = self.log(x, y, mask=mask)
        return norm(u, lambda u: self._inner(x, u, u))

    def project(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        r"""Returns a near point of the manifold for a point of the ambient space.

        At points of the manifold it returns them, and its Jacobian is finite and is the orthogonal projection of the
        ambient space onto the tangent space. So the trace of the ambient Jacobian of ``v(project(x))``, for a tangent
        field ``v``, is the divergence with respect to the volume of the ambient metric.

        Args:
            x: points of the ambient space ``[*batch, *event]``.
            mask: the entries that are projected. Default: None, all.
        """
        return self._project(x) if mask is None else torch.where(mask, self._project(x), x)

    def deviation(self, x: Tensor) -> Tensor:
        """Computes how far points of the ambient space are from the manifold, ``[*batch]``, in the ambient metric.

        Args:
            x: points of the ambient space ``[*batch, *event]``.
        """
        return self._sum((self._project(x) - x).square()).sqrt()

    def holds(self, x: Tensor) -> Tensor:
        """Returns which points lie on the manifold up to a thousandth of their size, or of one: bool ``[*batch]``.

        Args:
            x: points of the ambient space ``[*batch, *event]``.
        """
        return self.deviation(x) <= 1e-3 * self._sum(x.square()).sqrt().clamp(min=1.0)

    def to_tangent(self, x: Tensor, u: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Returns the tangent vector at ``x`` that is nearest to ``u`` in the ambient space.

        Args:
            x: points ``[*batch, *event]`` of the manifold.
            u: vectors of the ambient space ``[*batch, *event]``.
            mask: the entries that count. Default: None, all.
        """
        return _masked(self._to_tangent(x, u), mask)

    def inner(self, x: Tensor, u: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Computes the Riemannian inner product of two tangent vectors at ``x``, ``[*batch]``.

        Args:
            x: points ``[*batch, *event]``.
            u: tangent vectors at ``x``.
            v: tangent vectors at ``x``.
            mask: the entries that count. Default: None, all.
        """
        return self._inner(x, _masked(u, mask), v)

    def transport(self, x: Tensor, y: Tensor, u: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Returns the tangent vector at ``y`` that ``u`` becomes by parallel transport along the geodesic from ``x``.

        Args:
            x: points ``[*batch, *event]``.
            y: points ``[*batch, *event]``.
            u: tangent vectors at ``x``.
            mask: the entries that count. Default: None, all.
        """
        return _masked(self._transport(x, y, u), mask)

    def geodesic(self, x0: Tensor, x1: Tensor, t: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Returns the point at time ``t`` of the shortest geodesic, and its velocity there: ``(xt, ut)``.

        .. math:: x_t = \exp_{x_0}(t \log_{x_0} x_1), \qquad u_t = \frac{d x_t}{d t}

        The velocity is a tangent vector at ``xt``, not at ``x0``.

        Args:
            x0: points ``[*batch, *event]`` at time 0.
            x1: points ``[*batch, *event]`` at time 1.
            t: times ``[*batch]`` or ``[]``.
            mask: the entries that move. Default: None, all.
        """
        batch = torch.broadcast_shapes(x0.shape, x1.shape)[: max(x0.dim(), x1.dim()) - len(self.event_shape)]
        t = t.to(x0.dtype).expand(torch.broadcast_shapes(batch, t.shape))
        xt, ut = self._geodesic(x0, x1, t)
        return (xt, ut) if mask is None else (torch.where(mask, xt, x0), _masked(ut, mask))

    def origin(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        """Returns a point of the manifold, ``[*event]``, always the same: the one that zero is projected to.

        Args:
            dtype: the dtype of the point. Default: None, torch's default dtype.
            device: the device of the point. Default: None, torch's default device.
        """
        return self._project(torch.zeros(self.event_shape, dtype=dtype, device=device))

    def premetric(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""Computes a distance that paths can follow, and its gradient: ``(d [*batch], gradient)``.

        Default: the length of the shortest geodesic, whose gradient at ``x`` is :math:`-\log_x y / d`. Where the two
        points coincide the gradient is zero.

        Args:
            x: points ``[*batch, *event]``.
            y: points ``[*batch, *event]``.
        """
        u = self._log(x, y)
        d = norm(u, lambda u: self._inner(x, u, u))
        scale = expand_rows(d, u)
        return d, -u / torch.where(scale > 0, scale, 1.0)

    def descent(
        self, x0: Tensor, x1: Tensor, t: Tensor, *, steps: int = 100, limit: float = math.inf
    ) -> tuple[Tensor, Tensor]:
        r"""Returns points of curves along which the distance to the end decreases linearly, and their velocities.

        .. math:: u_t = -\frac{d(x_t, x_1)}{1 - t} \, \frac{\nabla d(x_t, x_1)}{|\nabla d(x_t, x_1)|^2}

        with the distance of :meth:`premetric`. The curves are simulated by Euler steps along geodesics; the velocity
        depends on the present distance, so it corrects the error of earlier steps. No gradients are computed.

        Args:
            x0: points ``[B, *event]`` at time 0.
            x1: points ``[B, *event]`` at time 1.
            t: times ``[m, B]`` in [0, 1): m points of each curve.
            steps: the number of Euler steps in [0, 1].
            limit: the largest speed. A slower curve is also one to ``x1``: it makes up for the delay later.

        Shapes: returns ``xt [m, B, *event]`` and ``ut [m, B, *event]``.
        """
        with torch.no_grad():
            xt, ut = self._descent(x0, x1, t.to(x0.dtype), steps, limit)
        return xt.unflatten(0, t.shape), ut.unflatten(0, t.shape)

    def _descent(self, x0: Tensor, x1: Tensor, t: Tensor, steps: int, limit: float) -> tuple[Tensor, Tensor]:
        """Computes the points and velocities of :meth:`descent`, with one dimension for times and curves."""

        def fall(state, rows, left):
            d, slope = self.premetric(state[0], x1[rows])
            square = self._inner(state[0], slope, slope)
            u = -expand_rows(d / (left * torch.where(square > 0, square, 1.0)), slope) * slope
            return limited(u, norm(u, lambda u: self._inner(state[0], u, u)), limit)

        move = lambda state, u, duration: (self._exp(state[0], expand_rows(duration, u) * u),)
        (xt,), ut = descend((x0,), fall, move, t, steps)
        return xt, ut

    @abstractmethod
    def frame(self, x: Tensor) -> Tensor:
        """Returns a basis of the tangent space at ``x``, orthonormal in the ambient space: ``[*batch, dim, *event]``.

        Args:
            x: points ``[*batch, *event]``.
        """

    def log_volume_element(self, x: Tensor) -> Tensor:
        r"""Computes the logarithm of Riemannian volume over that of the ambient metric, ``[*batch]``.

        It is :math:`\tfrac12 \log\det G` with G the inner products of :meth:`frame`; up to a constant, zero where the
        embedding is isometric.

        Args:
            x: points ``[*batch, *event]``.
        """
        return x.new_zeros(x.shape[: x.dim() - len(self.event_shape)])

    def normal_velocity(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        r"""Returns how the normal coordinates at ``x`` of a point ``y`` change while it moves with velocity ``v``.

        .. math:: \dot u = d(\log_x)_y\, v, \qquad u = \log_x y

        This inverts the differential of ``exp``. Default: one forward-mode product through ``log``.

        Args:
            x: points ``[*batch, *event]``, where the coordinates are zero.
            y: points ``[*batch, *event]``, nearer to ``x`` than its cut locus.
            v: tangent vectors at ``y``.
        """
        return torch.func.jvp(lambda y: self._log(x, y), (y,), (v,))[1]

    def cost(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Computes squared distances between all pairs, ``[B0, B1]``: a cost of optimal transport.

        Args:
            x0: points ``[B0, *event]``.
            x1: points ``[B1, *event]``.
        """
        return self._dist(x0.unsqueeze(1), x1.unsqueeze(0)).square()

    def preimages(self, x: Tensor, y: Tensor, count: int) -> Tensor:
        """Returns tangent vectors at ``x`` that ``exp`` maps to ``y``, ``[n, *batch, *event]``, the shortest first.

        On closed manifolds these are the geodesics that go around up to ``count`` times; elsewhere there is one.
        Products, whose densities are products too, return only the shortest.

        Args:
            x: points ``[*batch, *event]``.
            y: points ``[*batch, *event]``.
            count: the largest number of full turns.
        """
        return self._log(x, y).unsqueeze(0)

    @property
    def has_log_det_exp(self) -> bool:
        """Whether :meth:`log_det_exp` has a closed form: whether a subclass writes it."""
        return type(self).log_det_exp is not Manifold.log_det_exp

    def log_det_exp(self, x: Tensor, u: Tensor) -> Tensor:
        """Computes the logarithm of the factor by which ``exp`` at ``x`` changes Riemannian volumes at ``u``.

        Args:
            x: points ``[*batch, *event]``.
            u: tangent vectors at ``x``.

        Raises:
            TypeError: if the manifold has no closed form (:attr:`has_log_det_exp`).
        """
        raise TypeError(
            f"{self!r}.log_det_exp: this manifold has no closed form; use a base other than a wrapped normal."
        )

    def log_wrapped_normal(self, loc: Tensor, x: Tensor, scale: Tensor, turns: int) -> Tensor:
        """Computes the log-density of a wrapped normal against the Riemannian volume, ``[*batch]``.

        See :class:`cflow.manifolds.WrappedNormal`. Manifolds that are products compute one for each part.

        Args:
            loc: the centre, points ``[*batch, *event]``.
            x: points ``[*batch, *event]``.
            scale: standard deviations along an orthonormal frame at ``loc``, ``[*batch, dim]``.
            turns: how many times around the geodesics that count go at most.
        """
        return log_wrapped_normal(self, loc, x, scale, turns)

    def uniform(
        self,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Draws points ``[*shape, *event]`` uniformly with respect to the Riemannian volume.

        Args:
            shape: the shape of the batch.
            generator: the source of random numbers. Default: None, torch's default generator.
            dtype: the dtype of the points. Default: None, torch's default dtype.
            device: the device of the points. Default: None, torch's default device.

        Raises:
            ValueError: if the volume is infinite.
        """
        raise ValueError(
            f"{self!r}.uniform: its volume is infinite, so there is no uniform distribution; use a wrapped normal."
        )

    def _sum(self, x: Tensor) -> Tensor:
        """Sums over the event, ``[*batch]``."""
        rank = len(self.event_shape)
        return x.sum(tuple(range(x.dim() - rank, x.dim()))) if rank else x


def _masked(u: Tensor, mask: Tensor | None) -> Tensor:
    return u if mask is None else torch.where(mask, u, 0.0)

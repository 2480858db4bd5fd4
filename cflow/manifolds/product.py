"""Products of different manifolds, with named parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from cflow.manifolds.manifold import Manifold
from cflow.manifolds.numerics import norm
from cflow.registry import register

__all__ = ["Product"]


@register("manifolds.Product")
@dataclass(frozen=True)
class Product(Manifold):
    r"""The product of manifolds: a point is one vector with the parts one after another.

    .. math:: \langle u, v \rangle_x = \sum_k w_k \langle u_k, v_k \rangle_{x_k},
              \qquad d(x, y)^2 = \sum_k w_k \, d(x_k, y_k)^2

    :meth:`split` returns the parts by name, each in its own shape; :meth:`join` is its inverse. For many points of one
    manifold use :class:`Power`.

    Shapes: points ``[*batch, n]``, with n the number of entries of all parts together. Cost: that of the parts.

    Args:
        parts: the manifolds by name, in the order of the vector.
        weights: positive factors of the squared metrics by name, one where a part has none. They balance the losses
            of the parts, and change the volume. Default: None, one for all parts.

    Raises:
        ValueError: if there are no parts, a weight has no part, or a weight is not positive and finite.

    Example:
        >>> from cflow.manifolds import Euclidean, Sphere
        >>> stars = Product({"place": Sphere(2), "magnitudes": Euclidean(3)}, weights={"magnitudes": 0.5})
        >>> {name: list(part.shape) for name, part in stars.split(stars.origin()).items()}
        {'place': [3], 'magnitudes': [3]}
    """

    parts: dict[str, Manifold]
    weights: dict[str, float] | None = None

    def __post_init__(self):
        if not self.parts:
            raise ValueError("Product({}): there are no parts; pass manifolds by name.")
        for name, weight in (self.weights or {}).items():
            if name not in self.parts:
                raise ValueError(f"Product(weights of {name!r}): no part has this name; use {', '.join(self.parts)}.")
            if not 0 < weight < math.inf:
                raise ValueError(f"Product(weights={{{name!r}: {weight}}}): a weight is positive; pass 1.0.")

    def __hash__(self):
        return hash((tuple(self.parts.items()), tuple(sorted((self.weights or {}).items()))))

    @property
    def event_shape(self) -> Size:
        return Size([sum(each.event_shape.numel() for each in self.parts.values())])

    @property
    def dim(self) -> int:
        return sum(each.dim for each in self.parts.values())

    @property
    def flat(self) -> bool:
        """Whether all parts are flat."""
        return all(each.flat for each in self.parts.values())

    @property
    def log_volume(self) -> float:
        """The logarithm of the product of the volumes, each times its weight to the power ``dim / 2``."""
        return sum(each.log_volume for each in self.parts.values()) + self._log_weight()

    @property
    def injectivity(self) -> float:
        """The smallest of the parts."""
        return min(self._weight(name) ** 0.5 * each.injectivity for name, each in self.parts.items())

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the parts of points or tangent vectors by name, each ``[*batch, *event]`` in the part's shape.

        Args:
            x: points or vectors ``[*batch, n]``.
        """
        cut = x.split([each.event_shape.numel() for each in self.parts.values()], -1)
        return {
            name: piece.reshape(*x.shape[:-1], *each.event_shape)
            for (name, each), piece in zip(self.parts.items(), cut)
        }

    def join(self, parts: dict[str, Tensor]) -> Tensor:
        """Returns points or tangent vectors ``[*batch, n]`` for parts by name, whose batches broadcast.

        Args:
            parts: a tensor for each part, ``[*batch, *event]`` in the part's shape.

        Raises:
            ValueError: if the names are not those of the parts.
        """
        if parts.keys() != self.parts.keys():
            raise ValueError(
                f"Product.join({', '.join(parts)}): the parts are {', '.join(self.parts)}; pass one tensor for each."
            )
        flat = [
            parts[name].reshape(
                *parts[name].shape[: parts[name].dim() - len(each.event_shape)], each.event_shape.numel()
            )
            for name, each in self.parts.items()
        ]
        batch = torch.broadcast_shapes(*(each.shape[:-1] for each in flat))
        return torch.cat([each.expand(*batch, each.shape[-1]) for each in flat], -1)

    def _weight(self, name: str) -> float:
        return (self.weights or {}).get(name, 1.0)

    def _log_weight(self) -> float:
        return sum(0.5 * each.dim * math.log(self._weight(name)) for name, each in self.parts.items())

    def _each(self, method: str, *tensors: Tensor) -> dict:
        """Calls a method of every part with its part of every tensor."""
        cut = [self.split(each) for each in tensors]
        return {name: getattr(each, method)(*(c[name] for c in cut)) for name, each in self.parts.items()}

    def _total(self, method: str, *tensors: Tensor) -> Tensor:
        return sum(self._each(method, *tensors).values())

    def _exp(self, x, u):
        return self.join(self._each("exp", x, u))

    def _log(self, x, y):
        return self.join(self._each("log", x, y))

    def _project(self, x):
        return self.join(self._each("project", x))

    def _to_tangent(self, x, u):
        return self.join(self._each("to_tangent", x, u))

    def _transport(self, x, y, u):
        return self.join(self._each("transport", x, y, u))

    def _inner(self, x, u, v):
        return sum(self._weight(name) * each for name, each in self._each("inner", x, u, v).items())

    def _dist(self, x, y):
        parts = self._each("dist", x, y)
        return norm(torch.stack([self._weight(name) ** 0.5 * each for name, each in parts.items()], -1))

    def _geodesic(self, x0, x1, t):
        x0, x1 = self.split(x0), self.split(x1)
        found = {name: each.geodesic(x0[name], x1[name], t) for name, each in self.parts.items()}
        points, velocities = ({name: pair[i] for name, pair in found.items()} for i in (0, 1))
        return self.join(points), self.join(velocities)

    def deviation(self, x):
        """Computes the root of the sum of the squared deviations of the parts, ``[*batch]``.

        Args:
            x: points ``[*batch, n]``.
        """
        return norm(torch.stack(list(self._each("deviation", x).values()), -1))

    def origin(self, *, dtype=None, device=None):
        """Returns the origins of the parts.

        Args:
            dtype: the dtype of the point. Default: None, torch's default dtype.
            device: the device of the point. Default: None, torch's default device.
        """
        return self.join({name: each.origin(dtype=dtype, device=device) for name, each in self.parts.items()})

    def frame(self, x):
        """Returns the frames of the parts, with zeros in the entries of the others.

        Args:
            x: points ``[*batch, n]``.
        """
        start, blocks = 0, []
        for name, frame in self._each("frame", x).items():
            size = self.parts[name].event_shape.numel()
            flat = frame.reshape(*x.shape[:-1], self.parts[name].dim, size)
            blocks.append(torch.nn.functional.pad(flat, (start, x.shape[-1] - start - size)))
            start += size
        return torch.cat(blocks, -2)

    def log_volume_element(self, x):
        """Sums those of the parts and of the weights, ``[*batch]``.

        Args:
            x: points ``[*batch, n]``.
        """
        return self._total("log_volume_element", x) + self._log_weight()

    def cost(self, x0, x1):
        """Sums the weighted costs of the parts, ``[B0, B1]``.

        Args:
            x0: points ``[B0, n]``.
            x1: points ``[B1, n]``.
        """
        return sum(self._weight(name) * each for name, each in self._each("cost", x0, x1).items())

    @property
    def has_log_det_exp(self) -> bool:
        return all(part.has_log_det_exp for part in self.parts.values())

    def log_det_exp(self, x, u):
        """Sums those of the parts.

        Args:
            x: points ``[*batch, n]``.
            u: tangent vectors at ``x``.
        """
        return self._total("log_det_exp", x, u)

    def log_wrapped_normal(self, loc, x, scale, turns):
        """Sums the log-densities of the parts, for scales in the weighted metric.

        Args:
            loc: the centre, points ``[*batch, n]``.
            x: points ``[*batch, n]``.
            scale: standard deviations ``[*batch, dim]``.
            turns: the largest number of full turns.
        """
        loc, x = self.split(loc), self.split(x)
        scales = scale.split([each.dim for each in self.parts.values()], -1)
        total = 0.0
        for (name, each), part in zip(self.parts.items(), scales):
            total = total + each.log_wrapped_normal(loc[name], x[name], part / self._weight(name) ** 0.5, turns)
        return total - self._log_weight()

    def uniform(self, shape, *, generator=None, dtype=None, device=None):
        """Draws the parts uniformly, one after another.

        Args:
            shape: the shape of the batch.
            generator: the source of random numbers. Default: None, torch's default generator.
            dtype: the dtype of the points. Default: None, torch's default dtype.
            device: the device of the points. Default: None, torch's default device.
        """
        draw = lambda each: each.uniform(shape, generator=generator, dtype=dtype, device=device)
        return self.join({name: draw(each) for name, each in self.parts.items()})

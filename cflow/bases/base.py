"""What all base distributions share."""

from __future__ import annotations

import functools
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cflow.arguments import is_integer, plain
from cflow.draws import Source, check_generator, draw_rows
from cflow.lost_rows import restore, set_aside

__all__ = ["Base", "Number", "broadcasts", "show"]

Number = float | Tensor


class Base(nn.Module, ABC):
    """Defines what all bases share: the shape of an event, the dtype and device of draws, the checks of arguments.

    A subclass writes ``_sample(shape, generator)`` and ``_log_prob(x)``. Both compute in :attr:`dtype`: the module's
    own dtype or float32, whichever is wider. Floats stay floats, exact in every dtype. Tensors become buffers. An
    ``nn.Parameter`` stays a parameter and is trained with the flow.

    Args:
        event_shape: shape of one event, an int or a tuple.

    Raises:
        ValueError: if a size of ``event_shape`` is not a positive integer.

    Example:
        >>> class Cauchy(Base):
        ...     def _sample(self, shape, generator):
        ...         return torch.tan(math.pi * (self._draw(torch.rand, shape, generator) - 0.5))
        ...
        ...     def _log_prob(self, x):
        ...         return -self._sum_event((math.pi * (1 + x.square())).log())
        >>> Cauchy(2).log_prob(torch.zeros(2))
        tensor(-2.2895)
    """

    context_shape: torch.Size | None = None
    has_density = True
    is_gaussian = False  # a normal with ``loc`` and ``scale``, entry by entry: scores follow from velocities
    is_standard = False  # a normal of mean zero and variance one
    fixed_buffers = True  # training steps do not change them, so they are not averaged

    def __init__(self, event_shape: int | Sequence[int]):
        super().__init__()
        # The manifold of the points, for densities with respect to its volume; None: the Euclidean space. An attribute
        # of the object, since one of the class would hide a manifold that is a module.
        self.manifold = None
        self.event_shape = event_size(type(self).__name__, event_shape)
        # Follows .to() and .cuda() even where every argument is a float; the constructor restores it, not the state.
        self.register_buffer("_like", torch.empty(0), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of draws: the module's own, float32 at least."""
        return torch.promote_types(self._like.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        """The device of draws."""
        return self._like.device

    def sample(
        self,
        shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        generator: Source = None,
    ) -> Tensor:
        """Draws ``[*shape, *event]``. Gradients reach the arguments of the base that require them.

        Args:
            shape: batch shape of the draws, an int or a tuple.
            context: only for bases that read one.
            mask: only for bases that read one.
            generator: source of random numbers. Default: torch's default generator of the device. With a list of
                generators, each draws its row of the first dimension.

        Raises:
            ValueError: if a context or a mask is passed to a base that does not read it, or the number of generators
                differs from the number of rows.
            TypeError: if ``generator`` is not a ``torch.Generator`` or a list of them, for example a seed.
        """
        self._refuse("sample", context, mask)
        check_generator(f"{type(self).__name__}.sample", generator, by_row=True)
        shape = (plain(shape),) if is_integer(shape, numpy=True) else tuple(shape)
        return draw_rows(self._sample, shape, generator)

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Computes the log-density ``[*batch]`` of ``x [*batch, *event]`` in nats, in float32 at least.

        It is -inf at infinity, and NaN where ``x`` has NaN. Neither changes the gradients of other points.

        Args:
            x: points ``[*batch, *event]``.
            context: only for bases that read one.
            mask: only for bases that read one.

        Raises:
            ValueError: if ``x`` does not end in the event's shape, or a context or a mask is passed to a base that does
                not read it.
        """
        self._refuse("log_prob", context, mask)
        rank = len(self.event_shape)
        if x.dim() < rank or x.shape[x.dim() - rank :] != self.event_shape:
            raise ValueError(
                f"{type(self).__name__}.log_prob(x of shape {list(x.shape)}): events have shape "
                f"{list(self.event_shape)}; pass a tensor [*batch, *event]."
            )
        x, size = set_aside(x.to(torch.promote_types(x.dtype, self.dtype)), self.event_shape)
        return restore(self._log_prob(x), size)

    @abstractmethod
    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Draws ``[*shape, *event]``."""

    @abstractmethod
    def _log_prob(self, x: Tensor) -> Tensor:
        """Computes the log-density of ``x [*batch, *event]``; its shape and dtype are already checked."""

    def is_on(self, manifold: Any) -> bool:
        """Returns whether a density is with respect to the volume of ``manifold``; None is the Euclidean space.

        Without a density, whether the points are on it.
        """
        if self.manifold is None:
            return manifold is None or manifold.flat or not self.has_density
        return self.manifold is manifold or self.manifold == manifold

    def _refuse(self, method: str, context: Tensor | None, mask: Tensor | None) -> None:
        for name, value in (("context", context), ("mask", mask)):
            if value is not None:
                given = f" of shape {list(value.shape)}" if isinstance(value, Tensor) else ""
                raise ValueError(
                    f"{type(self).__name__}.{method}({name}={type(value).__name__}{given}): this base does not depend "
                    f"on a {name}; omit it."
                )

    def _keep(self, **arguments: Number) -> None:
        """Keeps floats as attributes, tensors as buffers and parameters as parameters, if all are finite."""
        dtypes = []
        for name, value in arguments.items():
            if not isinstance(value, Tensor):
                value = float(value)
                finite = math.isfinite(value)
            else:
                if not isinstance(value, nn.Parameter):
                    value = value.detach().clone()
                    value = value if value.is_floating_point() else value.to(self._like.dtype)
                finite = bool(value.isfinite().all())
            if not finite:
                raise ValueError(
                    f"{type(self).__name__}({name}={show(value)}): it has a NaN or an infinity; pass finite numbers."
                )
            if not isinstance(value, Tensor):
                setattr(self, name, value)
                continue
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)
            dtypes.append(value.dtype)
            self._like = self._like.to(value.device, functools.reduce(torch.promote_types, dtypes))

    def _keep_broadcast(self, **arguments: Number) -> None:
        """Keeps numbers that broadcast to the event's shape."""
        for name, value in arguments.items():
            if isinstance(value, Tensor) and not broadcasts(value.shape, self.event_shape):
                raise ValueError(
                    f"{type(self).__name__}({name} of shape {list(value.shape)}): it does not broadcast to the event "
                    f"{list(self.event_shape)}; pass a number or a tensor of that shape."
                )
        self._keep(**arguments)

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not bool((value > 0).all() if isinstance(value, Tensor) else value > 0):
                raise ValueError(
                    f"{type(self).__name__}({name}={show(value)}): it must be positive; pass a value such as 1.0."
                )

    def _number(self, name: str, dtype: torch.dtype) -> Number:
        """Returns an argument for arithmetic in ``dtype``: a float, or a tensor of that dtype."""
        value = getattr(self, name)
        return value.to(dtype) if isinstance(value, Tensor) else value

    def _full(self, value: Number, dtype: torch.dtype) -> Tensor:
        """Expands a number to the event's shape, so that sums over the event count each entry."""
        return torch.as_tensor(value, dtype=dtype, device=self.device).expand(self.event_shape)

    def _sum_event(self, x: Tensor) -> Tensor:
        return x.sum(tuple(range(x.dim() - len(self.event_shape), x.dim()))) if self.event_shape else x

    def _draw(self, draw, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return draw((*shape, *self.event_shape), generator=generator, dtype=self.dtype, device=self.device)

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}"


def event_size(name: str, event_shape: int | Sequence[int]) -> torch.Size:
    """Returns an event's shape from an int or a sequence of positive ints."""
    sizes = (event_shape,) if isinstance(event_shape, numbers.Integral) else tuple(event_shape)
    sizes = tuple(map(plain, sizes))
    if not all(is_integer(size, 1) for size in sizes):
        raise ValueError(
            f"{name}(event_shape={event_shape}): sizes must be positive integers; pass an int or a tuple such as "
            f"(3, 32, 32)."
        )
    return torch.Size(sizes)


def broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    """Returns whether ``shape`` expands to ``target``."""
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(target)))


def show(value: Number) -> str:
    """Returns a number, or the shape of a tensor, as text for an error."""
    return f"tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)

"""What every path is: how points between base and data are drawn, and what a prediction there becomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..shapes import rows

__all__ = ["Path", "PathSample"]


@dataclass
class PathSample:
    """A draw from a path: the point, its time, its ends and what the network should say there.

    Shapes: ``xt, x0, x1 [B, *event]``; ``target [B, *event]``, or ``[B, 2, *event]`` on paths with two heads;
    ``t [B]``, ``mask`` broadcastable to the event or ``None``.
    """

    xt: Tensor
    t: Tensor
    x0: Tensor
    x1: Tensor
    target: Tensor
    mask: Tensor | None = None


class Path(ABC):
    """Joins base and data, and says what a network predicts on the way.

    Attributes:
        predict: what the network predicts, one of ``predictions``.
        margin: the smallest weight by which a conversion divides.
        interval: the times at which the velocity is well conditioned: training draws times in it, solvers stay in it.
        heads: how many tensors the network returns: 1 is ``[B, *event]``, 2 is ``[B, 2, *event]``.
        noisy: whether a point on the path holds noise beside its two ends.
    """

    predictions: ClassVar[tuple[str, ...]] = ()
    heads: int = 1
    noisy: ClassVar[bool] = False

    def __init__(self, predict: str, margin: float):
        if predict not in self.predictions:
            raise ValueError(
                f"{type(self).__name__}(predict={predict!r}): a network on this path predicts one of "
                f"{', '.join(self.predictions)}; choose one of them."
            )
        if not 0 < margin < 0.5:
            raise ValueError(
                f"{type(self).__name__}(margin={margin}): the margin lies in (0, 0.5); the default is 1e-3."
            )
        self.predict, self.margin = predict, margin
        self.interval = self._interval()

    @abstractmethod
    def _interval(self) -> tuple[float, float]:
        """Finds the times at which the velocity is well conditioned."""

    @abstractmethod
    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, mask: Tensor | None = None, generator=None) -> PathSample:
        """Draws the point at time ``t [B]`` between ``x0`` and ``x1`` ``[B, *event]``."""

    @abstractmethod
    def loss(self, prediction: Tensor, sample: PathSample) -> Tensor:
        """Computes the error of the prediction per item, ``[B]``, in float32 or better."""

    @abstractmethod
    def velocity(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Converts the network's prediction to the marginal velocity at ``(t, x)``; ``t`` inside ``interval``."""

    @property
    @abstractmethod
    def score_interval(self) -> tuple[float, float]:
        """The times at which the score is well conditioned."""

    @abstractmethod
    def cross(self, velocity: Tensor, x: Tensor, tau: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Gives the change of ``x`` from time ``t`` to ``s`` outside the interval, by the velocity at ``tau`` in it."""

    def _check_ends(self, x0: Tensor, x1: Tensor, t: Tensor) -> None:
        if x0.shape != x1.shape:
            raise ValueError(
                f"path.sample: x0 {tuple(x0.shape)} and x1 {tuple(x1.shape)} differ in shape; a path adds "
                "them, so pair each data sample with one base sample."
            )
        if t.dim() > 1 or (t.dim() == 1 and t.shape[0] != x1.shape[0]):
            raise ValueError(
                f"path.sample: t {tuple(t.shape)} must be a scalar or hold one time per row of x1 {tuple(x1.shape)}."
            )

    def __eq__(self, other) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(predict={self.predict!r})"


def mean_square(error: Tensor, mask: Tensor | None) -> Tensor:
    """Averages squares per item, ``[B, ...] -> [B]``, over the entries that the mask marks."""
    if mask is None:
        return rows(error.square()).mean(1)
    mask = mask.expand_as(error).to(error.dtype)
    return rows(error.square() * mask).sum(1) / rows(mask).sum(1).clamp(min=1)


def first_time(holds: Callable[[Tensor], Tensor], bounds: Sequence[float] = (0.0, 1.0)) -> float:
    """Finds the time from which on a monotone condition holds, by bisection."""
    low, high = bounds
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if bool(holds(torch.tensor(middle, dtype=torch.float64))) else (middle, high)
    return high

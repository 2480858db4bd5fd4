"""What every path is: how points between base and data are drawn, and what a prediction there becomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cflow.shapes import Value, mean_rows, sum_rows

__all__ = ["Path", "PathSample", "VelocityPath"]


@dataclass
class PathSample:
    """A draw from a path: the point, its time, its ends and what the network should say there.

    Shapes: ``xt, x0, x1 [B, *event]`` (dicts of such for joint paths); ``target [B, *event]``, or
    ``[B, 2, *event]`` on paths with two outputs; ``t [B]``, ``mask`` broadcastable to the event or ``None``.
    """

    xt: Value
    t: Tensor
    x0: Value
    x1: Value
    target: Any
    mask: Tensor | None = None


class Path(ABC):
    """Joins base and data: what flows of every kind are trained on and step along.

    What moves a point, a velocity or jumps between tokens, is said by subclasses such as :class:`VelocityPath`.

    Attributes:
        predict: what the network predicts.
        interval: the times at which that is well conditioned: training draws times in it, solvers stay in it.
        adds_noise: whether a point on the path holds noise beside its two ends.
        affine: whether a point is a weighted sum of its two ends alone. The ends then follow from a velocity, and the
            schedule can be exchanged after training (``flow.with_path``).
        straight: whether the way between two ends is a straight line at constant speed.

    Example:
        >>> from cflow import paths
        >>> sample = paths.Linear().sample(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.25]))
        >>> sample.xt, sample.target
        (tensor([[0.2500, 0.2500]]), tensor([[1., 1.]]))
    """

    predict: str
    interval: tuple[float, float] = (0.0, 1.0)
    adds_noise: ClassVar[bool] = False
    affine: ClassVar[bool] = False
    straight: ClassVar[bool] = False

    def draw(self, x1: Value, generator: torch.Generator | None = None) -> Any:
        """Draws the noise of a batch of points for data ``x1 [B, *event]``: None on paths that add none.

        It is drawn ahead of the training step, where data are coupled, and given to :meth:`sample`.
        """
        return None

    @abstractmethod
    def sample(
        self,
        x0: Value,
        x1: Value,
        t: Tensor,
        *,
        mask: Tensor | None = None,
        noise: Any = None,
        generator: torch.Generator | None = None,
    ) -> PathSample:
        """Returns the point at time ``t [B]`` between ``x0`` and ``x1`` ``[B, *event]``.

        Args:
            mask: what of the event counts, broadcastable to it.
            noise: what :meth:`draw` returned; drawn here, with ``generator``, where it is not given.

        Raises:
            ValueError: where shapes of ends and times do not fit.
        """

    @abstractmethod
    def loss(self, prediction: Value, sample: PathSample) -> Tensor:
        """Computes the error of the prediction per item, ``[B]``, in float32 or better."""

    @abstractmethod
    def step(
        self,
        prediction: Value,
        x: Value,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Value:
        """Moves ``x [B, *event]`` from time ``t`` to ``s`` (``[]`` or ``[B]``) by the prediction at ``(t, x)``.

        What ``mask`` does not mark stays where it is.
        """

    def __eq__(self, other) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(predict={self.predict!r})"


class VelocityPath(Path):
    """A path whose marginals a velocity carries along.

    Attributes:
        predict: what the network predicts, one of ``predictions``.
        margin: the smallest weight by which a conversion divides.
        outputs: how many tensors the network returns: 1 is ``[B, *event]``, 2 is ``[B, 2, *event]``.
    """

    predictions: ClassVar[tuple[str, ...]] = ()
    outputs: int = 1

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
    def velocity(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Converts the network's prediction to the marginal velocity at ``(t, x)``; ``t`` inside ``interval``."""

    @property
    @abstractmethod
    def score_interval(self) -> tuple[float, float]:
        """The times at which the score is well conditioned."""

    @abstractmethod
    def closed_form_step(self, velocity: Tensor, x: Tensor, tau: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Computes the change of ``x`` from time ``t`` to ``s`` by the velocity at ``tau``, which is inside the
        interval; ``t`` and ``s`` need not be."""

    @abstractmethod
    def scale_change(self, t: Tensor, s: Tensor, *, at_data: bool) -> Tensor:
        """Computes the factor by which points grow from ``t`` to ``s``, both outside the interval at one of its ends.

        A density crosses that stretch by this change of scale, whose inverse and log-determinant are exact whatever the
        network says. ``at_data`` says at which end it is.
        """

    def step(self, prediction, x, t, s, *, mask=None, generator=None):
        """Moves ``x`` from ``t``, inside the interval, to ``s`` by the closed form; what ``mask`` does not mark stays.

        Cost: no call of the network, no draws.
        """
        change = self.closed_form_step(self.velocity(prediction, x, t), x, t, t, s)
        return x + (change if mask is None else torch.where(mask, change, 0.0))

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


def mean_square(error: Tensor, mask: Tensor | None) -> Tensor:
    """Averages squares per item, ``[B, ...] -> [B]``, over the entries that the mask marks."""
    if mask is None:
        return mean_rows(error.square())
    mask = mask.expand_as(error).to(error.dtype)
    return sum_rows(error.square() * mask) / sum_rows(mask).clamp(min=1)


def first_time(holds: Callable[[Tensor], Tensor], bounds: Sequence[float] = (0.0, 1.0)) -> float:
    """Finds the time from which on a monotone condition holds, by bisection."""
    low, high = bounds
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if bool(holds(torch.tensor(middle, dtype=torch.float64))) else (middle, high)
    return high

"""The contract of paths: how points between base and data are drawn, and how predictions there are used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cflow.shapes import Value, expand_like, mean_rows
from cflow.times import Times, Uniform

__all__ = ["Path", "PathSample", "VelocityPath"]


@dataclass
class PathSample:
    """A draw from a path: a point, its time, its ends and the training target.

    Attributes:
        xt: the points ``[B, *event]``; a dict of tensors on joint paths, as are ``x0`` and ``x1``.
        t: the times ``[B]``.
        x0: the base samples ``[B, *event]``.
        x1: the data samples ``[B, *event]``.
        target: what the network should return at ``(t, xt)``: ``[B, *event]``, or ``[B, 2, *event]`` for two outputs.
        mask: the entries of the event that count, broadcastable to ``[B, *event]``. Default: None, all of them.
    """

    xt: Value
    t: Tensor
    x0: Value
    x1: Value
    target: Any
    mask: Tensor | None = None


class Path(ABC):
    """Connects base and data: the contract of paths, on which flows of every kind are trained and sampled.

    Subclasses define what moves a point: a velocity (:class:`VelocityPath`), or jumps between tokens.

    Attributes:
        predict: what the network predicts.
        interval: the times at which the prediction is well conditioned. Training draws times in it, and solvers stay in
            it.
        adds_noise: whether a point on the path also depends on noise, not only on its two ends.
        affine: whether a point is a weighted sum of its two ends. The ends then follow from a velocity, and the
            schedule can be changed after training (``flow.with_path``).
        straight: whether a point moves between its two ends in a straight line at constant speed.
        simulates: whether the points are simulated, ahead of the step, by :meth:`simulate`.
        times: the distribution of the training times that suits the path.

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
    simulates: ClassVar[bool] = False
    times: ClassVar[Times] = Uniform()

    def draw(self, x1: Value, generator: torch.Generator | None = None) -> Any:
        """Draws the noise for a batch of data ``x1 [B, *event]`` with ``generator``; None on paths without noise.

        Noise is drawn when pairs are coupled, ahead of the training step, and then passed to :meth:`sample`.
        """
        return None

    def mirror(self, t: Tensor, noise: Any) -> tuple[Tensor, Any]:
        """Returns times and noise with the same law that are as different as possible: ``(t [B], noise)``.

        Averages over both have less noise. ``t`` are times, and ``noise`` is the result of :meth:`draw`.

        Raises:
            ValueError: on paths without noise.
        """
        raise ValueError(f"{self!r}: there is no noise to mirror; pass antithetic=False.")

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
        """Returns the points at times ``t`` between ``x0`` and ``x1``.

        Args:
            x0: base samples ``[B, *event]``.
            x1: data samples ``[B, *event]``.
            t: times ``[B]`` or ``[]``, 0 at the base and 1 at the data. Where the points determine the time, the result
                has other times.
            mask: the entries of the event that count, broadcastable to ``[B, *event]``. Default: None, all of them.
            noise: the result of :meth:`draw`. Default: None, drawn here with ``generator``.
            generator: the source of the noise. Default: None, torch's default generator.

        Raises:
            ValueError: if the shapes of ends and times do not match.
        """

    def simulate(self, x0: Value, x1: Value, t: Tensor, *, mask: Tensor | None = None) -> PathSample:
        """Simulates each path once and returns its points at several times, in rows: first those at ``t[0]``.

        Args:
            x0: base samples ``[B, *event]``.
            x1: data samples ``[B, *event]``.
            t: times ``[m, B]``.
            mask: the entries of the event that count. Default: None, all of them.

        Raises:
            ValueError: on paths whose points have a closed form (``simulates`` is False).
        """
        raise ValueError(f"{self!r}: its points have a closed form; use sample.")

    @abstractmethod
    def loss(self, prediction: Value, sample: PathSample) -> Tensor:
        """Computes the loss per item, ``[B]``, in float32 or better.

        Args:
            prediction: the network's output at ``(sample.t, sample.xt)``.
            sample: the result of :meth:`sample`.
        """

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
        """Moves ``x`` from time ``t`` to time ``s``.

        Args:
            prediction: the network's output at ``(t, x)``.
            x: the points ``[B, *event]``.
            t: the present time, ``[]`` or ``[B]``.
            s: the time after the step, ``[]`` or ``[B]``.
            mask: the entries that move, broadcastable to ``[B, *event]``. Default: None, all of them.
            generator: the source of random numbers, for paths whose steps draw. Default: None, torch's default
                generator.
        """

    def __eq__(self, other) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(predict={self.predict!r})"


class VelocityPath(Path):
    """A path whose marginals move with a velocity: the base class of paths for continuous flows.

    Attributes:
        predict: what the network predicts, one of ``predictions``.
        margin: the smallest weight by which a conversion of the prediction divides, in (0, 0.5).
        outputs: how many tensors the network returns: ``[B, *event]`` for 1, ``[B, 2, *event]`` for 2.
        linear: whether the velocity is a weighted sum of the prediction and ``x``, so that a divergence in closed form
            follows from that of the network.
    """

    predictions: ClassVar[tuple[str, ...]] = ()
    outputs: int = 1
    linear: bool = False

    def __init__(self, predict: str, margin: float):
        if predict not in self.predictions:
            raise ValueError(
                f"{type(self).__name__}(predict={predict!r}): not available; choose one of "
                f"{', '.join(self.predictions)}."
            )
        if not 0 < margin < 0.5:
            raise ValueError(f"{type(self).__name__}(margin={margin}): the margin is in (0, 0.5); pass 1e-3.")
        self.predict, self.margin = predict, margin
        self.interval = self._interval()

    @abstractmethod
    def _interval(self) -> tuple[float, float]:
        """Computes the times at which the velocity is well conditioned."""

    @abstractmethod
    def velocity(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Converts the network's ``prediction`` at ``(t, x)`` to the marginal velocity, for ``t`` inside ``interval``.

        Args:
            prediction: the network's output, ``[B, *event]`` or ``[B, 2, *event]``.
            x: the points ``[B, *event]``.
            t: the times, ``[]`` or ``[B]``.
        """

    def retract(self, x: Tensor) -> Tensor:
        """Returns the points at which the network is evaluated: ``x``, or the nearest points of a curved space."""
        return x

    @property
    def score_interval(self) -> tuple[float, float]:
        """The times at which the score is well conditioned. Default: ``interval``."""
        return self.interval

    def on(self, manifold: Any) -> VelocityPath:
        """Returns the path on a manifold: itself if the manifold is flat; None is the Euclidean space.

        Args:
            manifold: a :class:`cflow.manifolds.Manifold`, or None.

        Raises:
            ValueError: for a manifold whose geodesics are not straight lines, which the path would leave; paths along
                geodesics accept every manifold, and raise for None.
        """
        if manifold is not None and not manifold.flat:
            raise ValueError(
                f"ContinuousFlow(path={self!r}): its points leave {manifold!r}, which is not flat; use "
                f"paths.Geodesic()."
            )
        return self

    def closed_form_step(self, velocity: Tensor, point: Tensor, tau: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Moves ``x`` from time ``t`` to time ``s`` by a closed form. Default: an Euler step.

        Args:
            velocity: the marginal velocity at ``(tau, point)``.
            point: the points at which the velocity was evaluated ``[B, *event]``.
            tau: the time of the velocity, inside ``interval``.
            x: the points that move ``[B, *event]``.
            t: the start of the step; it may be outside ``interval``.
            s: the end of the step; it may be outside ``interval``.
        """
        return x + expand_like(s - t, x) * velocity

    def scale_change(self, t: Tensor, s: Tensor, *, at_data: bool) -> Tensor:
        """Computes the factor by which points grow from ``t`` to ``s``, times beyond one end of ``interval``.

        The default is 1: points do not grow, or the interval is all of [0, 1]. Densities use this change of scale
        there. Its inverse and log-determinant are exact for every network.

        Args:
            t: the start.
            s: the end.
            at_data: True at the data's end of ``interval``, False at the base's.
        """
        return torch.ones_like(t)

    def token_time(self, vocabulary: int) -> float:
        """Returns the time at which nearly all tokens of a relaxed sequence are visible: the flow may end there.

        Args:
            vocabulary: the number of tokens.

        Raises:
            ValueError: unless a subclass overrides the method.
        """
        raise ValueError(f"{self!r} is not a path to tokens; use paths.Linear('logits').")

    def log_given(self, sample: PathSample, base: Any) -> Tensor:
        """Computes the log-density of the points of ``sample`` given their data, ``[B]``, for independent pairs.

        Args:
            sample: the result of :meth:`sample`.
            base: the distribution of ``sample.x0``.

        Raises:
            ValueError: unless a subclass overrides the method.
        """
        raise ValueError(f"{self!r} has no density given the data; use paths.Linear('logits').")

    def check_base(self, base: Any) -> None:
        """Raises a ValueError if the path cannot start from ``base``. Default: every base is accepted."""

    def step(self, prediction, x, t, s, *, mask=None, generator=None):
        """Moves ``x`` from ``t``, inside ``interval``, to ``s`` by the closed form; only entries in ``mask`` move.

        Cost: no function evaluation and no draws; ``generator`` is not used.
        """
        moved = self.closed_form_step(self.velocity(prediction, x, t), x, t, x, t, s)
        return moved if mask is None else torch.where(mask, moved, x)

    def _check_ends(self, x0: Tensor, x1: Tensor, t: Tensor) -> None:
        if x0.shape != x1.shape:
            raise ValueError(
                f"path.sample: x0 {tuple(x0.shape)} and x1 {tuple(x1.shape)} differ in shape; pass one base sample per "
                "data sample."
            )
        if t.dim() > 1 or (t.dim() == 1 and t.shape[0] != x1.shape[0]):
            raise ValueError(
                f"path.sample: t {tuple(t.shape)} must be a scalar or one time per row of x1 {tuple(x1.shape)}."
            )


def mean_square(error: Tensor, mask: Tensor | None) -> Tensor:
    """Computes the mean square per item, ``[B, ...] -> [B]``, over the entries in the mask."""
    return mean_rows(error.square(), mask)


def cross_entropy(logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Computes the mean cross-entropy per position and item, ``[B, *positions, K] -> [B]``, in float32 or better.

    Args:
        logits: the logits ``[B, *positions, K]``.
        target: the probabilities ``[B, *positions, K]``, one-hot for tokens.
        mask: the entries that count, broadcastable to ``logits``; a position counts if one of its entries does.
    """
    wide = torch.promote_types(target.dtype, torch.float32)
    each = -(target.to(wide) * logits.to(wide).log_softmax(-1)).sum(-1)
    return mean_rows(each, None if mask is None else mask.expand_as(logits).any(-1))


def first_time(holds: Callable[[Tensor], Tensor], bounds: Sequence[float] = (0.0, 1.0)) -> float:
    """Computes the first time at which a monotone condition holds, by bisection."""
    low, high = bounds
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if bool(holds(torch.tensor(middle, dtype=torch.float64))) else (middle, high)
    return high

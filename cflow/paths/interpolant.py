"""Stochastic interpolants: paths between two arbitrary distributions, with noise in between."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from cflow.paths.affine import AffinePath
from cflow.paths.gammas import BrownianGamma, Gamma
from cflow.paths.path import PathSample, VelocityPath, first_time, mean_square
from cflow.paths.schedules import Linear
from cflow.registry import register
from cflow.shapes import expand_like

__all__ = ["BrownianBridge", "Interpolant"]

Prediction = Literal["score", "velocity+score", "noise", "velocity"]
SCORED = ("score", "velocity+score")  # the second output is the score itself


@register("paths.Interpolant")
class Interpolant(VelocityPath):
    r"""Connects two distributions by a schedule, with noise that vanishes at both ends.

    .. math:: x_t = \alpha_t x_1 + \sigma_t x_0 + \gamma_t z, \qquad z \sim \mathcal N(0, I)

    Neither end has to be normal, and any coupling may be used, since the score follows from the noise z. With
    :math:`u_t = \dot\alpha_t x_1 + \dot\sigma_t x_0`, the marginal velocity and the score are

    .. math:: v_t(x) = \mathbb E[u_t | x] + \dot\gamma_t \mathbb E[z | x]
                     = \mathbb E[u_t | x] - \tfrac12 (\gamma_t^2)^{\boldsymbol\cdot} \, s_t(x),
              \qquad s_t(x) = \nabla \log p_t(x) = -\mathbb E[z | x] / \gamma_t

    One network learns both, with two outputs ``[B, 2, *event]`` (``fields.MLP(2, outputs=2)``):

    | ``predict``        | outputs                      | interval         | use it for                             |
    |--------------------|------------------------------|------------------|----------------------------------------|
    | ``score``          | mean of ``u``, score         | [0, 1]           | ends with a density: no division       |
    | ``velocity+score`` | ``v``, score                 | without the ends | SDEs, above all with a small network   |
    | ``noise``          | mean of ``u``, mean of ``z`` | without the ends | points or surfaces: unbounded scores   |
    | ``velocity``       | ``v``                        | without the ends | sampling by the ODE; there is no score |

    The means are conditional on x. If ``gamma`` is not steep, all intervals are [0, 1]. With ``score``, the velocity is
    a difference of the two outputs, and the mean of ``u`` often changes its direction where ``v`` hardly changes. A
    network too small to learn this makes SDEs inaccurate: between two normals in 50 dimensions, three layers of 64 end
    with 0.93 of the variance, and with 0.99 through ``velocity+score``; on moons, W2 after 100 steps falls from 0.21 to
    0.16 (``tests/benchmarks/sf2m.py``, with and without ``--predict score``). In return, the target of
    ``velocity+score`` grows as :math:`1/\sqrt t` towards steep ends.

    The score's error is weighted by ``gamma``, so all losses are errors of ``z``. Near an end, where ``gamma``
    vanishes, the loss hardly measures the score, and results hardly depend on it. If the interval ends before 1,
    log-densities are those of data with noise of width ``gamma(margin)`` (0.03 for a Brownian bridge); this does not
    apply to ``predict="score"``.

    Args:
        schedule: the affine path whose weights ``alpha`` and ``sigma`` are used, with the default prediction.
            Default: None, :class:`Linear`.
        gamma: the width of the noise. Default: None, ``paths.BrownianGamma(1.0)``.
        predict: what the network predicts, see the table.
        margin: the distance of the interval from an end at which a conversion is singular.

    Raises:
        ValueError: for an unknown prediction, an invalid margin, or a schedule with a prediction.
        TypeError: if the schedule is not an affine path, or gamma not a :class:`Gamma`.

    Source: Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants: A Unifying Framework for Flows and Diffusions,
    2023, arXiv:2303.08797.

    Example:
        >>> path = Interpolant(gamma=BrownianGamma(0.5))
        >>> sample = path.sample(torch.zeros(4, 2), torch.ones(4, 2), torch.rand(4))
        >>> sample.target.shape
        torch.Size([4, 2, 2])
    """

    predictions: ClassVar[tuple[str, ...]] = ("score", "velocity+score", "noise", "velocity")
    adds_noise: ClassVar[bool] = True

    def __init__(
        self,
        schedule: AffinePath | None = None,
        gamma: Gamma | None = None,
        predict: Prediction = "score",
        *,
        margin: float = 1e-3,
    ):
        self.schedule = Linear() if schedule is None else schedule
        self.gamma = BrownianGamma() if gamma is None else gamma
        for name, value, kind, example in (
            ("schedule", self.schedule, AffinePath, "paths.Linear()"),
            ("gamma", self.gamma, Gamma, "paths.BrownianGamma(1.0)"),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"{type(self).__name__}({name}={value!r}): pass an object such as {example}.")
        if self.schedule.predict != "velocity":
            raise ValueError(
                f"{type(self).__name__}(schedule={self.schedule!r}): the interpolant sets the prediction; omit predict "
                f"in the schedule."
            )
        super().__init__(predict, margin)
        widest = float(self.gamma(torch.tensor(0.5, dtype=torch.float64)))
        if predict == "noise" and widest <= margin:
            raise ValueError(
                f"{type(self).__name__}(gamma={self.gamma!r}, predict='noise', margin={margin}): the largest gamma, "
                f"{widest:.3g}, is below the margin; increase it, or use predict='score'."
            )

    @property
    def outputs(self) -> int:
        return 1 if self.predict == "velocity" else 2

    def _interval(self) -> tuple[float, float]:
        low, high = self.schedule.interval
        if self.gamma.steep and self.predict != "score":
            low, high = max(low, self.margin), min(high, 1 - self.margin)
        return low, high

    @property
    def score_interval(self) -> tuple[float, float]:
        """The times at which the score is well conditioned: ``interval`` if it is predicted, else gamma >= margin."""
        low, high = self.interval
        if self.predict in SCORED:
            return low, high
        wide = lambda t: self.gamma(t) >= self.margin
        return max(low, first_time(wide, (0.0, 0.5))), min(high, 1 - first_time(lambda t: wide(1 - t), (0.0, 0.5)))

    def scale_change(self, t: Tensor, s: Tensor, *, at_data: bool) -> Tensor:
        """Computes that of the schedule; at the data's end, noise of width ``gamma(margin)`` remains."""
        return self.schedule.scale_change(t, s, at_data=at_data)

    # Training

    def draw(self, x1: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws standard normal noise of the shape of ``x1`` with ``generator``."""
        return torch.randn(x1.shape, generator=generator, dtype=x1.dtype, device=x1.device)

    def mirror(self, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the times ``t`` and the negative of ``noise``."""
        return t, -noise

    def sample(self, x0, x1, t, *, mask=None, noise=None, generator=None) -> PathSample:
        """Returns the points at times ``t [B]`` between ``x0`` and ``x1`` ``[B, *event]``.

        The noise is ``noise``, or drawn with ``generator``; ``mask`` is passed on. The target of a score is multiplied
        by ``gamma``, as :meth:`loss` expects.
        """
        self._check_ends(x0, x1, t)
        noise = self.draw(x1, generator) if noise is None else noise
        c, gamma = self.schedule.coefficients(t, x1), expand_like(self.gamma(t), x1)
        xt = c.alpha * x1 + c.sigma * x0 + gamma * noise
        drift = c.d_alpha * x1 + c.d_sigma * x0
        match self.predict:
            case "velocity":
                target = drift + expand_like(self.gamma.slope(t), x1) * noise
            case "velocity+score":
                target = torch.stack((drift + expand_like(self.gamma.slope(t), x1) * noise, -noise), 1)
            case "noise":
                target = torch.stack((drift, noise), 1)
            case "score":
                target = torch.stack((drift, -noise), 1)
        return PathSample(xt, t, x0, x1, target, mask)

    def loss(self, prediction: Tensor, sample: PathSample) -> Tensor:
        """Computes the mean squared error of ``prediction`` per item of ``sample``, ``[B]``, in float32 or better.

        Errors of scores are multiplied by ``gamma``.
        """
        target, mask = sample.target, sample.mask
        prediction = prediction.to(torch.promote_types(target.dtype, torch.float32))
        if self.predict in SCORED:
            first, score = prediction.unbind(1)
            prediction = torch.stack((first, expand_like(self.gamma(sample.t), score) * score), 1)
        if mask is not None and self.outputs == 2:
            mask = mask.expand_as(sample.xt).unsqueeze(1)
        return mean_square(prediction - target, mask)

    # From the prediction to what a solver uses

    def velocity(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Converts the network's ``prediction`` at ``(t, x)`` to the marginal velocity; ``t`` is in ``interval``."""
        if self.predict == "velocity":
            return prediction
        drift, second = prediction.unbind(1)
        if self.predict == "velocity+score":
            return drift
        if self.predict == "noise":
            return drift + expand_like(self.gamma.slope(t), x) * second
        return drift - 0.5 * expand_like(self.gamma.d_square(t), x) * second

    def score(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Converts the network's ``prediction`` at ``(t, x)`` to the score, for ``t`` inside ``score_interval``."""
        second = prediction[:, 1]
        return second if self.predict in SCORED else -second / expand_like(self.gamma(t), x)


@register("paths.BrownianBridge")
class BrownianBridge(Interpolant):
    r"""Connects pairs by Brownian bridges: the path of Schroedinger-bridge matching.

    .. math:: x_t = (1 - t) x_0 + t x_1 + \sigma \sqrt{t (1 - t)} \, z

    With pairs from entropic transport at :math:`\epsilon = 2 \sigma^2`
    (``couplings.Sinkhorn(epsilon=2 * sigma**2, relative=False)``), sampling with
    ``solvers.EulerMaruyama(diffusion=sigma)`` simulates the Schroedinger bridge between base and data. The plan of a
    batch approximates that coupling; for small batches, so does the exact plan. The ODE has the same marginals. The
    joint distribution of start and end converges with first order in the steps for every solver, since the last step is
    one of the ODE: two standard normals at sigma = 0.8 have covariance 0.730; the solver reaches 0.778 with 5 steps and
    0.740 with 20.

    Args:
        sigma: the diffusion of the bridge, positive.
        predict: what the network predicts, see :class:`Interpolant`.
        margin: the distance of the interval from an end at which a conversion is singular.

    Source: Tong et al., Simulation-free Schrödinger Bridges via Score and Flow Matching, 2023, arXiv:2307.03672.

    Example:
        >>> path = BrownianBridge(sigma=1.0)
        >>> sample = path.sample(torch.zeros(4, 2), torch.ones(4, 2), torch.zeros(4))
        >>> bool((sample.xt == 0).all()), path.outputs
        (True, 2)
    """

    def __init__(self, sigma: float = 1.0, predict: Prediction = "score", *, margin: float = 1e-3):
        self.sigma = sigma
        super().__init__(None, BrownianGamma(sigma), predict, margin=margin)

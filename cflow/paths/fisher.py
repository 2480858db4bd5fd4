"""The Fisher path: from uniform points of the positive orthant of a sphere to tokens, along great circles."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from cflow.paths.path import PathSample, VelocityPath, cross_entropy
from cflow.registry import register
from cflow.shapes import expand_like

__all__ = ["Fisher"]


@register("paths.Fisher")
class Fisher(VelocityPath):
    r"""Moves from uniform points of the positive orthant of the unit sphere to tokens, along great circles.

    .. math:: x_t = \exp_{x_0}(t \log_{x_0} e_i),
              \qquad v_t(x) = \frac{1}{1 - t} \sum_i p_i \log_x e_i, \quad
              \log_x e_i = \frac{\theta_i}{\sin \theta_i} (e_i - \cos(\theta_i) x), \quad \cos \theta_i = x_i

    for every position on its own. The squares of a point are probabilities, and distances on the sphere are those of
    the Fisher-Rao metric. The network predicts logits of the tokens, with probabilities p, trained by the cross-entropy
    per position. Points given different tokens have no common support from t = 1/2 on, so all is decided before.

    Solvers work in the ambient space. Network and velocity are evaluated at the normalised point, and velocities are
    tangent, so the norm stays one up to the solver's error.

    The base is ``bases.Orthant(event_shape)``. Use it in a :class:`cflow.RelaxedFlow`. There is no likelihood: the
    velocity points into the orthant at its boundary, so points that go back from data leave the support of the base.

    Args:
        margin: the smallest ``1 - t`` by which the velocity is divided.

    Shapes: events are ``[*positions, K]``.

    Source: Davis et al., Fisher Flow Matching for Generative Modeling over Discrete Data, 2024, arXiv:2405.14664 (there
    the network regresses the velocity; with logits the velocity is tangent, and points to tokens).

    Example:
        >>> path, x0 = Fisher(), torch.tensor([[0.6, 0.8]])
        >>> path.sample(x0, torch.tensor([[1.0, 0.0]]), torch.tensor([0.5])).xt
        tensor([[0.8944, 0.4472]])
    """

    predictions: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(self, *, margin: float = 1e-3):
        super().__init__("logits", margin)

    def _interval(self) -> tuple[float, float]:
        return 0.0, 1.0 - self.margin

    def __repr__(self) -> str:
        return "Fisher()"

    def check_base(self, base) -> None:
        """Raises unless ``base`` is uniform on the positive orthant of the sphere."""
        if not getattr(base, "is_uniform_on_orthant", False):
            raise ValueError(
                f"ContinuousFlow(path={self!r}): it starts from the uniform distribution on the orthant of a sphere, "
                f"not from {type(base).__name__}; use bases.Orthant((*positions, vocabulary))."
            )

    def retract(self, x: Tensor) -> Tensor:
        """Returns ``x`` with norm one at every position."""
        return x / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)

    # Training

    def sample(self, x0, x1, t, *, mask=None, noise=None, generator=None) -> PathSample:
        """Computes the points at times ``t [B]`` on great circles from ``x0`` to one-hot tokens ``x1``.

        The path adds no noise: ``noise`` and ``generator`` are not used, and ``mask`` is passed on.
        """
        self._check_ends(x0, x1, t)
        t = expand_like(t, x1)
        angle = (x0 * x1).sum(-1, keepdim=True).clamp(-1, 1).arccos()
        # At the token itself both sines are zero.
        sine = angle.sin().clamp(min=torch.finfo(angle.dtype).tiny)
        xt = torch.sin((1 - t) * angle) / sine * x0 + torch.sin(t * angle) / sine * x1
        return PathSample(self.retract(torch.where(angle > 0, xt, x1)), t.reshape(-1), x0, x1, x1, mask)

    def loss(self, prediction: Tensor, sample: PathSample) -> Tensor:
        """Computes the cross-entropy of the logits ``prediction`` per item of ``sample``, a mean over its positions."""
        return cross_entropy(prediction, sample.target, sample.mask)

    def token_time(self, vocabulary: int) -> float:
        """Returns 0.6, for every ``vocabulary``: from t = 1/2 on a point determines its tokens."""
        return 0.6

    # From the prediction to what a solver uses

    def velocity(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Converts the logits ``prediction`` at ``(t, x)`` to the marginal velocity, tangent at the nearest point."""
        x = self.retract(x)
        pull = prediction.softmax(-1) * angle_over_sine(x) / expand_like(1 - t, x)
        return pull - (pull * x).sum(-1, keepdim=True) * x


def angle_over_sine(cosine: Tensor) -> Tensor:
    """Computes an angle over its sine from the cosine; smooth at zero angle, where a series takes over."""
    rest = 1 - cosine
    near = rest < 1e-3
    small = torch.where(near, rest, 0.0)
    series = 1 + small / 3 + 2 * small.square() / 15 + 2 * small**3 / 35
    cosine = torch.where(near, 0.5, cosine).clamp(min=-0.999)
    return torch.where(near, series, cosine.arccos() / (1 - cosine.square()).sqrt())

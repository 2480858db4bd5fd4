"""Weights over time for matching losses: ``weight(path, t) -> [B]``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.paths import VelocityPath
from cflow.registry import register

__all__ = ["MinSNR", "VelocityWeight"]


def _check_path(weight, path: VelocityPath) -> None:
    if not path.affine:
        raise ValueError(
            f"{weight!r} on {path!r}: this weight needs an affine path; omit it, or pass a function (path, t) -> [B]."
        )
    if path.predict == "logits":
        raise ValueError(
            f"{weight!r} on {path!r}: this weight is for squared errors, and the loss of logits is a cross-entropy; "
            f"omit it, or pass a function (path, t) -> [B]."
        )


@register("objectives.VelocityWeight")
@dataclass(frozen=True)
class VelocityWeight:
    r"""Computes the weight for which the error of any prediction is the error of the velocity that follows from it.

    .. math:: w_{x_1} = (\dot\alpha - \alpha \dot\sigma / \sigma)^2, \quad w_{x_0} = (\dot\sigma - \sigma \dot\alpha
              / \alpha)^2

    Args:
        maximum: the upper bound of the weight, which otherwise diverges at the end where the conversion divides by
            zero.

    Source: Kingma and Gao, Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation, 2023,
    arXiv:2303.00848.

    Example:
        >>> from cflow import paths
        >>> VelocityWeight()(paths.Linear("x1"), torch.tensor([0.0, 0.5]))
        tensor([1., 4.])
    """

    maximum: float = 1e3

    def __post_init__(self):
        if not self.maximum > 0:
            raise ValueError(f"VelocityWeight(maximum={self.maximum}): a weight is positive; pass a value such as 1e3.")

    def __call__(self, path: VelocityPath, t: Tensor) -> Tensor:
        """Returns the weights ``[B]`` for a prediction on ``path`` at times ``t [B]``."""
        _check_path(self, path)
        alpha, sigma = path.alpha(t), path.sigma(t)
        match path.predict:
            case "velocity":
                return torch.ones_like(t)
            case "x1":
                factor = path.d_alpha(t) - alpha * path.d_sigma(t) / sigma
            case "noise" | "score":  # the loss of a score is the error of the noise
                factor = path.d_sigma(t) - sigma * path.d_alpha(t) / alpha
        return factor.square().clamp(max=self.maximum)


@register("objectives.MinSNR")
@dataclass(frozen=True)
class MinSNR:
    r"""Computes the capped signal-to-noise ratio as the weight of an ``x1`` error, and equivalents for other errors.

    .. math:: w_{x_1} = \min(\mathrm{SNR}_t, \gamma), \quad w_{x_0} = \min(\mathrm{SNR}_t, \gamma) / \mathrm{SNR}_t,
              \quad \mathrm{SNR}_t = \alpha_t^2 / \sigma_t^2

    For velocities the weight is divided by ``(d_alpha sigma - alpha d_sigma)^2 / sigma^2``, the factor between squared
    errors of the velocity and of ``x1``.

    Args:
        gamma: the largest signal-to-noise ratio, positive; the paper uses 5.

    Source: Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, 2023, arXiv:2303.09556.

    Example:
        >>> from cflow import paths
        >>> MinSNR(5.0)(paths.Linear("x1"), torch.tensor([0.5, 0.99]))
        tensor([1., 5.])
    """

    gamma: float = 5.0

    def __post_init__(self):
        if not self.gamma > 0:
            raise ValueError(f"MinSNR(gamma={self.gamma}): the cap is positive; pass 5.0.")

    def __call__(self, path: VelocityPath, t: Tensor) -> Tensor:
        """Returns the weights ``[B]`` for a prediction on ``path`` at times ``t [B]``."""
        _check_path(self, path)
        alpha, sigma = path.alpha(t), path.sigma(t)
        square = sigma.square()
        match path.predict:
            case "x1":
                return torch.minimum(alpha.square() / square, torch.full_like(t, self.gamma))
            case "noise" | "score":
                return torch.minimum(torch.ones_like(t), self.gamma * square / alpha.square())
            case "velocity":
                capped = torch.minimum(alpha.square(), self.gamma * square)
                slope = (path.d_alpha(t) * sigma - alpha * path.d_sigma(t)).square()
                return capped / slope.clamp(min=torch.finfo(t.dtype).tiny)  # 0 / 0 at times where a path does not move

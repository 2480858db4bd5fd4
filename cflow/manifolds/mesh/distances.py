"""Spectral distances: weighted sums over eigenfunctions of the Laplacian."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cflow.registry import register

__all__ = ["Biharmonic", "CommuteTime", "Diffusion"]


@register("manifolds.Biharmonic")
@dataclass(frozen=True)
class Biharmonic:
    r"""Computes the weights of the biharmonic distance.

    .. math:: d(x, y)^2 = \sum_{k \ge 1} \frac{(\varphi_k(x) - \varphi_k(y))^2}{\lambda_k^2}

    It is nearly the geodesic distance for near points, and smooth for far ones. It has no parameter.

    Source: Lipman, Rustamov and Funkhouser, Biharmonic Distance, 2010, ACM Transactions on Graphics 29(3).

    Example:
        >>> import torch
        >>> Biharmonic().weights(torch.tensor([1.0, 2.0]))
        tensor([1.0000, 0.2500])
    """

    def weights(self, eigenvalues: Tensor) -> Tensor:
        """Returns the weights of the squared differences, ``[K]``.

        Args:
            eigenvalues: the positive eigenvalues ``[K]``.
        """
        return eigenvalues**-2


@register("manifolds.CommuteTime")
@dataclass(frozen=True)
class CommuteTime:
    r"""Computes the weights of the commute-time distance.

    .. math:: d(x, y)^2 = \sum_{k \ge 1} \frac{(\varphi_k(x) - \varphi_k(y))^2}{\lambda_k}

    On a surface the sum over all eigenfunctions diverges, slowly, so the distance depends on their number.

    Source: Qiu and Hancock, Clustering and Embedding Using Commute Times, 2007, IEEE Transactions on Pattern Analysis
    and Machine Intelligence 29(11).

    Example:
        >>> import torch
        >>> CommuteTime().weights(torch.tensor([1.0, 2.0]))
        tensor([1.0000, 0.5000])
    """

    def weights(self, eigenvalues: Tensor) -> Tensor:
        """Returns the weights of the squared differences, ``[K]``.

        Args:
            eigenvalues: the positive eigenvalues ``[K]``.
        """
        return 1 / eigenvalues


@register("manifolds.Diffusion")
@dataclass(frozen=True)
class Diffusion:
    r"""Computes the weights of the diffusion distance at a time ``tau``.

    .. math:: d(x, y)^2 = \sum_{k \ge 1} e^{-2 \tau \lambda_k} (\varphi_k(x) - \varphi_k(y))^2

    It compares the heat that reaches all points from x and from y after the time tau. Details smaller than
    :math:`\sqrt\tau` do not count.

    Args:
        tau: the time, in squared units of length of the mesh.

    Raises:
        ValueError: if ``tau`` is not positive.

    Source: Coifman and Lafon, Diffusion Maps, 2006, Applied and Computational Harmonic Analysis 21(1).

    Example:
        >>> import torch
        >>> Diffusion(0.5).weights(torch.tensor([1.0, 2.0]))
        tensor([0.3679, 0.1353])
    """

    tau: float

    def __post_init__(self):
        if not 0 < self.tau < float("inf"):
            raise ValueError(f"Diffusion(tau={self.tau}): a time of diffusion is positive; pass 0.25 for a unit mesh.")

    def weights(self, eigenvalues: Tensor) -> Tensor:
        """Returns the weights of the squared differences, ``[K]``.

        Args:
            eigenvalues: the positive eigenvalues ``[K]``.
        """
        return (-2 * self.tau * eigenvalues).exp()

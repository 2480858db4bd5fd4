"""Invertible and orthogonal matrices from unconstrained real numbers, without reading a value from the device.

Precision: ``torch.set_float32_matmul_precision("high")`` lets a GPU round the factors of float32 products to 11 bits
(TF32). The log-determinants here do not change, but the products of ``encode`` are then right to three digits only, and
``decode`` no longer undoes them to float32. For densities keep ``"highest"``, the default of PyTorch, and use autocast
to speed networks up: both directions share its rounding.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.linalg import solve_triangular

__all__ = ["apply_reflections", "factors", "orthonormal", "reflections", "rotation", "without_autocast"]

# Numerator of the Padé approximant [6/6] of exp, from the constant on; the denominator is the same at -x.
PADE = (1.0, 1 / 2, 5 / 44, 1 / 66, 1 / 792, 1 / 15840, 1 / 665280)
HALVINGS = 3


def factors(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns triangular factors L, U and :math:`\log \det L U` from the matrix ``[D, D]`` that contains them.

    L is below the diagonal of the matrix (its own diagonal is one), U is above, and the logarithm of U's diagonal is on
    it. So the product is invertible for all numbers, and the identity for zeros.

    Example:
        >>> lower, upper, log_det = factors(torch.tensor([[0.0, 3.0], [2.0, 0.0]]))
        >>> lower @ upper, log_det
        (tensor([[1., 3.],
                [2., 7.]]), tensor(0.))
    """
    log_diagonal = weight.diagonal()
    identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    return weight.tril(-1) + identity, weight.triu(1) + log_diagonal.exp().diag_embed(), log_diagonal.sum()


def reflections(vectors: Tensor) -> tuple[Tensor, Tensor]:
    r"""Computes the compact form of a product of Householder reflections from its vectors ``[K, D]``.

    .. math:: H_1 H_2 \cdots H_K = I - U^\top S^{-1} U,
        \qquad S_{ij} = \begin{cases} u_i^\top u_j & i < j \\ 1/2 & i = j \\ 0 & i > j \end{cases}

    where the rows of U are the vectors at length one. A vector of zeros is the identity.

    Returns:
        U ``[K, D]`` and S ``[K, K]``, upper triangular.

    Source: Joffrain et al., Accumulating Householder Transformations, Revisited, 2006, doi:10.1145/1141885.1141886.
    """
    # The lengths do not matter, so a factor without a gradient keeps squares from overflowing.
    vectors = vectors / vectors.detach().abs().amax(-1, keepdim=True).clamp(min=torch.finfo(vectors.dtype).tiny)
    unit = vectors * vectors.square().sum(-1, keepdim=True).clamp(min=0.5).rsqrt()
    half = torch.full_like(unit[:, 0], 0.5).diag_embed()
    return unit, (unit @ unit.t()).triu(1) + half


def rotation(weight: Tensor) -> Tensor:
    r"""Computes the exponential of a skew-symmetric matrix, a rotation: :math:`Q = \exp(W - W^\top)`.

    It is the diagonal Padé approximant of degree 6 at an eighth of the matrix, squared three times. Such an approximant
    of a skew-symmetric matrix is orthogonal for every size, so Q always is. It equals the exponential to the last
    digits of float64 while no angle exceeds 8, and every rotation has angles of at most :math:`\pi`.
    ``torch.linalg.matrix_exp`` reads the size of the matrix, so on a GPU the host would wait for it.

    Cost: 7 products of ``[D, D]`` and one solve.

    Source: Higham, The Scaling and Squaring Method for the Matrix Exponential Revisited, 2005,
    doi:10.1137/04061101X; Lezcano-Casado and Martínez-Rubio, Cheap Orthogonal Constraints in Neural Networks, 2019,
    arXiv:1901.08428.

    Example:
        >>> half_turn = rotation(torch.tensor([[0.0, -torch.pi], [0.0, 0.0]], dtype=torch.float64))
        >>> torch.allclose(half_turn, -torch.eye(2, dtype=torch.float64))
        True
    """
    skew = (weight - weight.t()) * 0.5**HALVINGS
    identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    square = skew @ skew
    fourth = square @ square
    even = PADE[0] * identity + PADE[2] * square + PADE[4] * fourth + PADE[6] * (fourth @ square)
    odd = skew @ (PADE[1] * identity + PADE[3] * square + PADE[5] * fourth)
    result, _ = torch.linalg.solve_ex(even - odd, even + odd)
    for _ in range(HALVINGS):
        result = result @ result
    return result


def apply_reflections(x: Tensor, vectors: Tensor, inverse: bool) -> Tensor:
    """Multiplies rows ``x [B, D]`` by the product of reflections, or by its inverse."""
    unit, triangle = reflections(vectors)
    mixed = (
        solve_triangular(triangle, unit, upper=True) if inverse else solve_triangular(triangle.t(), unit, upper=False)
    )
    return x - (x @ unit.t()) @ mixed


def orthonormal(vectors: Tensor) -> Tensor:
    """Returns the first K columns ``[D, K]`` of a product of K reflections; all orthonormal columns can be reached."""
    unit, triangle = reflections(vectors)
    columns = solve_triangular(triangle, unit[:, : len(unit)], upper=True)
    identity = torch.eye(unit.shape[1], len(unit), dtype=unit.dtype, device=unit.device)
    return identity - unit.t() @ columns


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Turns autocast off, so that what a log-determinant depends on is computed in the dtype of ``x``."""
    return contextlib.nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)

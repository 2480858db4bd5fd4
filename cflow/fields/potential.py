"""OT-Flow's network: the gradient of a potential, whose Laplacian has a closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cflow.fields.activations import THRESHOLD
from cflow.fields.base import Field
from cflow.fields.embedding import ContextEmbedding, check_condition
from cflow.registry import register

__all__ = ["Potential"]

EMBEDDING = 16  # width of an embedded condition


@register("fields.Potential")
class Potential(Field):
    r"""Computes a vector field as the gradient of a potential, whose Laplacian has a closed form.

    .. math:: v = -\nabla_x \Phi, \qquad
        \Phi(s) = w^\top N(s) + \tfrac12 \sum_r \lambda_r (a_r^\top s)^2 + b^\top x, \qquad s = (x, t, c)

    N is the last state of a residual network :math:`u_0 = \ell(K_0 s + b_0)`,
    :math:`u_i = u_{i-1} + h\, \ell(K_i u_{i-1} + b_i)` with :math:`\ell(a) = \log(e^a + e^{-a})` and step
    :math:`h = 1 / (\text{layers} - 1)`; c is the embedded condition. The field has no rotation, like the velocity of
    optimal transport. It starts at zero with :math:`w, \lambda, b = 0`, where all three have a nonzero gradient.

    Args:
        features: the number of entries of one sample.
        width: the width of the residual network.
        layers: the number of layers of the residual network; each after the first costs ``features`` tangents for the
            divergence.
        rank: the largest number of squares in the quadratic part.
        context: the width of a continuous context vector; 0 for none.
        classes: the number of class labels, if the context is a label; 0 for none.
        autonomous: whether to omit the time.

    Shapes: ``t`` ``[]`` or ``[B]``; ``x`` ``[B, features]``; context ``[B, context]``, or labels ``[B]``
    -> ``[B, features]``.

    Cost, for D features and width m: the field is an explicit forward and backward pass, without a graph. The
    divergence (``divergence.Analytic``) adds ``B m`` operations for the first layer and ``B D m^2`` for each other.

    Raises:
        ValueError: if a size is not positive, or both ``context`` and ``classes`` are set.

    Source: Onken, Wu Fung, Li and Ruthotto, OT-Flow: Fast and Accurate Continuous Normalizing Flows via Optimal
    Transport, 2020, arXiv:2006.00104, sections 3 and 4. There :math:`\lambda = 1`, which
    cannot start at zero (the gradient of :math:`a_r` would vanish) and allows only one sign of curvature; b also
    multiplies the time, which has no effect on the field.

    Example:
        >>> from cflow.divergence import Analytic
        >>> field = Potential(2)
        >>> v, divergence, _ = Analytic()(field, torch.tensor(0.5), torch.zeros(5, 2), None)
        >>> v.shape, divergence.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        features: int,
        width: int = 64,
        layers: int = 2,
        *,
        rank: int = 10,
        context: int = 0,
        classes: int = 0,
        autonomous: bool = False,
    ):
        if min(features, width, layers, rank) < 1:
            raise ValueError(
                f"Potential(features={features}, width={width}, layers={layers}, rank={rank}): all sizes must be "
                f"positive; pass for example Potential(2)."
            )
        check_condition("Potential", classes, context)
        super().__init__((features,), () if classes else (context,) if context else None)
        self.features, self.width, self.layers, self.rank = features, width, layers, rank
        self.context, self.classes, self.autonomous = context, classes, autonomous
        conditional = bool(classes or context)
        self.embedding = ContextEmbedding(EMBEDDING, classes=classes, context=context) if conditional else None
        inputs = features + (not autonomous) + EMBEDDING * conditional
        self.opening = nn.Linear(inputs, width)
        self.residual = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1))
        self.squares = nn.Linear(inputs, min(rank, inputs), bias=False)
        self.weight = nn.Parameter(torch.zeros(width))
        self.curvature = nn.Parameter(torch.zeros(min(rank, inputs)))
        self.slope = nn.Parameter(torch.zeros(features))
        self.step = 1 / max(1, layers - 1)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        t = self.check(t, x, context, s)
        point = self._point(t, x, context)
        entered = self._entered(point)
        return self._descend(point, entered)[0].to(x.dtype)

    def potential(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Computes the potential :math:`\Phi(t, x)` at ``t``, ``x`` and ``context``: ``[B]``, in float32 or better.

        A field of least kinetic energy satisfies :math:`\partial_t \Phi = \frac12 \|\nabla \Phi\|^2` (Hamilton, Jacobi
        and Bellman). OT-Flow adds the mean absolute difference of both sides to its loss. The left side is the
        derivative of this result by ``t``, and the right side is half the squared norm of the field.
        """
        t = self.check(t, x, context)
        point = self._point(t, x, context)
        first, *others = (_log_cosh(a) for a in self._entered(point))
        value = sum((self.step * u for u in others), first) @ self.weight
        value = value + 0.5 * self.squares(point).square() @ self.curvature + point[:, : self.features] @ self.slope
        return value.to(torch.promote_types(x.dtype, torch.float32))

    def value_and_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Computes the field and its divergence :math:`-\Delta_x \Phi`, layer by layer.

        .. math:: \Delta_x \Phi = \sum_i \sum_j \frac{\partial \Phi}{\partial \ell(a_{ij})} \, \ell''(a_{ij}) \,
            \|\nabla_x a_{ij}\|^2 + \sum_r \lambda_r \|\nabla_x a_r^\top s\|^2

        where :math:`a_{ij}` is the input to the activation of entry j of layer i.
        """
        t = self.check(t, x, context)
        point = self._point(t, x, context)
        v, slopes, pulls = self._descend(point, self._entered(point))
        dtype = slopes[0].dtype
        with torch.autocast(x.device.type, enabled=False):
            bends = [pull.to(dtype) * (1 - slope.square()) for pull, slope in zip(pulls, slopes)]
            first, squares = (layer.weight[:, : self.features].to(dtype) for layer in (self.opening, self.squares))
            laplacian = bends[0] @ first.square().sum(1) + squares.square().sum(1) @ self.curvature.to(dtype)
            tangents = turned = None
            for layer, slope, bend in zip(self.residual, slopes, bends[1:]):
                # Tangents [B, D, width] of this layer's input, and of its product with the weights.
                moved = (first.mT if tangents is None else self.step * turned) * slope.unsqueeze(1)
                tangents = moved if tangents is None else tangents + moved
                turned = tangents @ layer.weight.mT.to(dtype)
                laplacian = laplacian + (bend * turned.square().sum(1)).sum(1)
        return v.to(x.dtype), -laplacian

    def _point(self, t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        """Joins x, the time and the embedded condition, in the dtype of the parameters."""
        dtype = self.weight.dtype
        parts = [x.to(dtype)]
        if not self.autonomous:
            parts.append(t.to(dtype).expand(x.shape[0]).unsqueeze(1))
        if context is not None:
            parts.append(self.embedding(context).to(dtype))
        return torch.cat(parts, 1)

    def _entered(self, point: Tensor) -> list[Tensor]:
        """Returns the inputs to the activations of all layers."""
        entered, u = [self.opening(point)], None
        for layer in self.residual:
            u = _log_cosh(entered[-1]) if u is None else u + self.step * _log_cosh(entered[-1])
            entered.append(layer(u))
        return entered

    def _descend(self, point: Tensor, entered: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Returns minus the gradient of the potential, and every layer's slopes and gradients at its output."""
        slopes = [torch.tanh(a.to(torch.promote_types(a.dtype, torch.float32))) for a in entered]
        z, pulls = self.weight, []
        for layer, a, slope in zip(reversed(self.residual), reversed(entered), reversed(slopes)):
            pulls.insert(0, self.step * z)
            z = z + (pulls[0] * slope.to(a.dtype)) @ layer.weight
        pulls.insert(0, z)
        gradient = (z * slopes[0].to(entered[0].dtype)) @ self.opening.weight[:, : self.features]
        quadratic = (self.squares(point) * self.curvature) @ self.squares.weight[:, : self.features]
        return -(gradient + quadratic + self.slope), slopes, pulls


def _log_cosh(a: Tensor) -> Tensor:
    """Computes ``log(exp(a) + exp(-a))``."""
    return a + F.softplus(-2 * a, threshold=THRESHOLD)

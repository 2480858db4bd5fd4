"""Monotone neural networks of one variable: with positive weights, and by integration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, softplus

from cflow.bijections.matrices import without_autocast
from cflow.discrete.univariate.family import Univariate, soft_clamp
from cflow.discrete.univariate.mixture import check_logistics, invert_mixture, logit_mixture, spread
from cflow.discrete.univariate.polynomials import ONE
from cflow.discrete.univariate.quadrature import legendre, real
from cflow.discrete.univariate.rootfinding import invert
from cflow.fields.mlp import ACTIVATIONS
from cflow.keywords import widths_of
from cflow.registry import register

__all__ = ["IntegratedNetwork", "SigmoidalNetwork"]


@register("discrete.SigmoidalNetwork")
class SigmoidalNetwork(Univariate):
    r"""Maps by a network of sigmoids whose positive weights come from the raw numbers (a deep sigmoidal flow).

    .. math:: h_{l+1} = (1 - \epsilon) \operatorname{logit} \sum_j w_{lj}\, \sigma(a_{lj} h_l + b_{lj}) + \epsilon h_l,
        \qquad h_0 = x, \quad z = h_L, \quad w_l \text{ sums to one}, \quad a_{lj} > 0

    This is the paper's DSF, a stack of layers of one variable; its denser DDSF needs a number of raw numbers quadratic
    in the units, for little gain. The share :math:`\epsilon` of the identity keeps slopes positive, and the
    logarithms of the :math:`a` have a soft limit, so :math:`\epsilon^L \le dz/dx \le e^{L \cdot \texttt{clamp}}`. For
    raw numbers of zero, :math:`a = 1` and the :math:`b` are spread from -1 to 1 (equal units would stay equal): the
    function is close to the identity, with slope 1 far out.

    Raw numbers: ``[L, 3, units]``, for each layer the logits of w, log a, and b; ``size = 3 L units``.

    ``decode`` inverts layer by layer with Newton's method, in brackets that always contain the root.

    Args:
        units: sigmoids per layer.
        layers: number of layers, L.
        clamp: largest logarithm of a slope, up and down.
        floor: share of the identity, in (0, 1).

    Cost: 4 L units sigmoids per entry; ``decode`` takes as much per iteration.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Huang et al., Neural Autoregressive Flows, 2018, arXiv:1804.00779, section 3.1.

    Example:
        >>> family = SigmoidalNetwork(units=4)
        >>> x, raw = torch.linspace(-9, 9, 5), torch.randn(5, family.size)
        >>> bool(torch.allclose(family.decode(family.encode(x, raw)[0], raw)[0], x, atol=1e-2))
        True
    """

    def __init__(self, units: int = 16, layers: int = 2, *, clamp: float = 5.0, floor: float = 1e-3):
        super().__init__()
        check_logistics("SigmoidalNetwork", units, clamp, floor)
        if layers < 1:
            raise ValueError(f"SigmoidalNetwork(layers={layers}): it must be 1 or more; pass 2.")
        self.units, self.layers, self.clamp, self.floor = units, layers, clamp, floor
        self.size = 3 * layers * units

    def encode(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(x)
        for parts in self._parts(raw, x.dtype):
            x, ladj = logit_mixture(x, *parts, self.floor)
            total = total + ladj
        return x, total

    def decode(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(z)
        for parts in reversed(self._parts(raw, z.dtype)):
            z, ladj = invert_mixture(z, *parts, self.floor)
            total = total + ladj
        return z, total

    def _parts(self, raw: Tensor, dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
        logits, slopes, shifts = raw.to(dtype).unflatten(-1, (self.layers, 3, self.units)).unbind(-2)
        slopes = soft_clamp(slopes, self.clamp)
        shifts = shifts + spread(self.units, shifts)
        means = -shifts * (-slopes).exp()
        return list(zip(logits.log_softmax(-1).unbind(-2), slopes.unbind(-2), means.unbind(-2)))

    def extra_repr(self) -> str:
        return f"units={self.units}, layers={self.layers}"


@register("discrete.IntegratedNetwork")
class IntegratedNetwork(Univariate):
    r"""Maps by the integral of a positive network (an unconstrained monotonic neural network).

    .. math::
        z = \beta + \int_0^x f(u; \theta) \, du,
        \qquad f = \epsilon + (1 - \epsilon) \operatorname{softplus} \bigl(\operatorname{MLP}(u, \theta)\bigr)

    All entries share the network, a part of the family; its inputs are u and the raw numbers :math:`\theta`. Its last
    layer starts at zero, where f = 1 and z = x for raw numbers of zero. (The paper uses an ELU plus one; the softplus
    is smooth, which makes the quadrature accurate.)

    The integral is a Gauss-Legendre sum over ``[0, x]``, and **the log-derivative is log f(x)**, where f is positive
    for every network. It is the derivative of the computed map only as far as the sum is accurate: to rounding at the
    start; with weights as they are usually drawn, to rounding within :math:`|x| \le 5` and to 1e-8 within 15.
    :meth:`quadrature_error` measures the error of a trained network, and more ``nodes`` reduce it exponentially.

    Raw numbers: ``(beta, signal)``; ``size = signal + 1``.

    ``decode`` uses Newton's method in a bracket that widens until it contains the root.

    Args:
        signal: how many raw numbers the network reads.
        hidden: width of every hidden layer.
        nodes: number of nodes of the quadrature.
        activation: one of tanh, silu, gelu, softplus, mish. With a bounded one, f is bounded and z grows linearly.
        floor: smallest slope, in (0, 1).

    Cost: ``nodes + 1`` passes of the network per entry; ``decode`` takes as many per iteration.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Wehenkel and Louppe, Unconstrained Monotonic Neural Networks, 2019, arXiv:1908.05164.

    Example:
        >>> family = IntegratedNetwork(signal=4)
        >>> z, ladj = family.encode(torch.tensor([2.0]), torch.tensor([[0.5, 0.0, 0.0, 0.0, 0.0]]))
        >>> bool(torch.allclose(z, torch.tensor([2.5])))
        True
    """

    def __init__(
        self,
        signal: int = 16,
        hidden: Sequence[int] = (64, 64),
        *,
        nodes: int = 32,
        activation: str = "tanh",
        floor: float = 1e-3,
    ):
        super().__init__()
        hidden = widths_of("IntegratedNetwork", "hidden", hidden)
        if signal < 1 or not hidden or min(hidden) < 1 or nodes < 1 or not 0 < floor < 1:
            raise ValueError(
                f"IntegratedNetwork(signal={signal}, hidden={hidden}, nodes={nodes}, floor={floor}): sizes must be "
                f"positive and floor in (0, 1); pass IntegratedNetwork()."
            )
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"IntegratedNetwork(activation={activation!r}): unknown activation; pass one of "
                f"{', '.join(ACTIVATIONS)}."
            )
        self.signal, self.hidden, self.nodes, self.activation, self.floor = signal, hidden, nodes, activation, floor
        self.size = signal + 1
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip((signal + 1, *hidden), (*hidden, 1)))
        self.act = ACTIVATIONS[activation]()
        self.register_buffer("rule", legendre(nodes), persistent=False)
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def encode(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        # In one precision, so that quadrature, slope and inverse belong to the same function.
        with without_autocast(x):
            return self._evaluate(x, *self._parts(raw, x.dtype))

    def decode(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        with without_autocast(z):
            shift, signal = self._parts(raw, z.dtype)
            return invert(lambda x: self._evaluate(x, shift, signal), z, (z - shift).detach())

    def quadrature_error(self, x: Tensor, raw: Tensor) -> Tensor:
        r"""Returns the relative difference between the slope of the computed map and f, at ``x`` for ``raw``.

        Example:
            >>> bool(IntegratedNetwork().quadrature_error(torch.tensor([3.0]), torch.zeros(1, 17)) < 1e-5)
            True
        """
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            z, ladj = self.encode(x, raw)
            (slope,) = torch.autograd.grad(z.sum(), x)
        return (slope.detach() * (-ladj.detach()).exp() - 1).abs()

    def _parts(self, raw: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        raw, first = raw.to(dtype), self.layers[0]
        # The contribution of the raw numbers to the first layer is the same at all nodes.
        return raw[..., 0], linear(raw[..., 1:], first.weight[:, 1:].to(dtype), first.bias.to(dtype))

    def _evaluate(self, x: Tensor, shift: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
        nodes, weights = real(self.rule, x.dtype)
        u = x[..., None, None] * pad(nodes, (0, 1), value=1.0)[:, None]
        value = torch.addcmul(signal[..., None, :], u, self.layers[0].weight[:, 0].to(x.dtype))
        for layer in self.layers[1:]:
            value = linear(self.act(value), layer.weight.to(x.dtype), layer.bias.to(x.dtype))
        slopes = self.floor + (1 - self.floor) * softplus(value.squeeze(-1) + ONE, threshold=40.0)
        return torch.addcmul(shift, x, (slopes[..., :-1] * weights).sum(-1)), slopes[..., -1].log()

    def extra_repr(self) -> str:
        return f"signal={self.signal}, hidden={self.hidden}, nodes={self.nodes}"

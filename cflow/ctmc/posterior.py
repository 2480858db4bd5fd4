"""What a network says about the data's tokens, given noisy ones: two posteriors, and exact draws from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cflow.ctmc.categorical import CACHED, CHUNK, invert
from cflow.registry import register

__all__ = ["Head", "Posterior", "Sharpen"]

CERTAIN = 700.0
"""The logarithm of odds that are as good as infinite; its exponential is finite in float64."""

Head = Literal["denoiser", "leave-one-out"]


@register("ctmc.Sharpen")
@dataclass(frozen=True)
class Sharpen:
    """Changes the distribution from which tokens are drawn, so that likely ones are more frequent.

    It acts on the leave-one-out posterior, before the evidence of the present token is added. On the denoiser's
    posterior it would also sharpen "stay as you are". Samples no longer have the flow's distribution.

    Args:
        temperature: logits are divided by it; 1 changes nothing, below 1 sharpens.
        top_k: the number of likeliest tokens that are kept. Default: None, all.
        top_p: the smallest set of likeliest tokens with this probability is kept; 1 keeps all.

    Raises:
        ValueError: if ``temperature`` is not positive, ``top_k`` below 1 or ``top_p`` outside (0, 1].

    Source: Holtzman et al., The Curious Case of Neural Text Degeneration, 2019, arXiv:1904.09751 (top_p).

    Example:
        >>> Sharpen(top_k=1)(torch.tensor([[0.0, 2.0, 1.0]]))
        tensor([[-inf, 2., -inf]])
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: a temperature is positive; pass a value such as 0.9.")
        if self.top_k is not None and not (isinstance(self.top_k, int) and self.top_k >= 1):
            raise ValueError(f"top_k={self.top_k}: it is a number of tokens; pass 1 or more, or omit it.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: it is a probability; pass a number in (0, 1].")

    @property
    def neutral(self) -> bool:
        """Whether nothing changes."""
        return self.temperature == 1 and self.top_k is None and self.top_p == 1

    def __call__(self, logits: Tensor) -> Tensor:
        """Returns changed ``logits [..., K]``, -inf for tokens that are dropped."""
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, -1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            ordered, place = logits.sort(-1, descending=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, place, before >= self.top_p)
            logits = logits.masked_fill(dropped, -torch.inf)
        return logits


class Posterior:
    r"""The posterior of the data's tokens at one time, from the logits of a network.

    Two distributions of the token :math:`x_1^i` follow from each other exactly, position by position:

    .. math:: p_i(j) = p(x_1^i = j \mid x_t), \qquad l_i(j) = p(x_1^i = j \mid x_t^{-i}),
              \qquad p_i(j) \propto l_i(j) \Big(1 + \mathbf 1[j = x_t^i] \frac{\kappa}{(1 - \kappa) \, p_0(x_t^i)} \Big)

    The denoiser p uses all noisy tokens; the leave-one-out posterior l does not use the token of the same position. The
    factor is the evidence of that token. For a mask source it is infinite at visible tokens, which are so carried over,
    and one at hidden tokens, where p and l are equal.

    Args:
        logits: the network's output ``[B, *event, K]``.
        x: the states ``[B, *event]``.
        evidence: the logarithm of the factor at the present token, ``[B, *event]``: zero where the state is not a token
            of the data, infinity where the token is carried over.
        head: which of the two the logits mean.
        sharpen: a change of l. Default: None.
        carries: whether the evidence may be infinite.
        paced: whether the exponentials of the logits are rates of jumps to each token, relative to the schedule's,
            so that their sum changes how fast tokens jump.

    Source: Leave-one-out posteriors of uniform diffusion, 2026, arXiv:2605.22765.

    Example:
        >>> posterior = Posterior(torch.zeros(1, 1, 2), torch.tensor([[1]]), torch.tensor([[1.0986]]), "leave-one-out")
        >>> posterior.log_probs("denoiser").exp()
        tensor([[[0.2500, 0.7500]]], dtype=torch.float64)
    """

    def __init__(
        self,
        logits: Tensor,
        x: Tensor,
        evidence: Tensor,
        head: Head,
        sharpen: Sharpen | None = None,
        carries: bool = False,
        paced: bool = False,
    ):
        self.paced = paced
        self.logits, self.x, self.evidence, self.head, self.carries = logits, x, evidence, head, carries
        self.sharpen = None if sharpen is None or sharpen.neutral else sharpen

    @property
    def size(self) -> int:
        """The number K of tokens."""
        return self.logits.shape[-1]

    @property
    def pace(self) -> Tensor | None:
        """How fast each token jumps, relative to the schedule: ``[B, *event]`` in float64; None for one."""
        return self.logits.double().logsumexp(-1).clamp(-CERTAIN, CERTAIN).exp() if self.paced else None

    def log_probs(self, kind: Head, *, dtype: torch.dtype = torch.float64) -> Tensor:
        """Returns log-probabilities ``[B, *event, K]`` of the denoiser or of the leave-one-out posterior.

        Args:
            kind: ``"denoiser"`` or ``"leave-one-out"``.
            dtype: the dtype of the computation and of the result.
        """
        flat = self._changed(self.logits.reshape(-1, self.size).to(dtype), self.x.flatten(), self._flat(dtype), kind)
        return torch.log_softmax(flat, -1).reshape(self.logits.shape)

    def log_prob_of(self, tokens: Tensor, kind: Head) -> Tensor:
        """Returns the log-probabilities of states ``tokens [B, *event]``; -inf for the mask state. In float64.

        The posterior is that of ``kind``.

        Cost: one pass over the logits, a chunk of rows at a time.
        """
        index, own, evidence = tokens.flatten(), self.x.flatten(), self._flat(torch.float64)
        logits, parts = self.logits.reshape(-1, self.size), []
        for rows in self._chunks(torch.arange(len(index), device=index.device)):
            changed = self._changed(logits.index_select(0, rows).double(), own[rows], evidence[rows], kind)
            at = changed.gather(-1, index[rows].clamp(max=self.size - 1).unsqueeze(-1)).squeeze(-1)
            parts.append(at - changed.logsumexp(-1))
        found = torch.cat(parts) if parts else evidence
        return found.masked_fill(index >= self.size, -torch.inf).reshape(tokens.shape)

    def weights(self, index: Tensor, kind: Head) -> Iterator[tuple[slice, Tensor]]:
        """Yields weights ``[N, K]`` in proportion to the probabilities, a chunk of positions at a time.

        They are in float64, or in the dtype of the logits if these are the logarithms of the weights.

        Args:
            index: the positions, as numbers of the flattened states ``[N]``.
            kind: ``"denoiser"`` or ``"leave-one-out"``.
        """
        plain = kind == self.head and not self.carries and self.sharpen is None and self.logits.element_size() >= 4
        own, evidence, begin = self.x.flatten(), self._flat(torch.float64), 0
        logits = self.logits.reshape(-1, self.size)
        for rows in self._chunks(index):
            weights = logits.index_select(0, rows)
            if plain:
                weights = weights.softmax(-1)
            else:
                weights = self._changed(weights.double(), own[rows], evidence[rows], kind)
                weights = weights.sub_(weights.amax(-1, keepdim=True)).exp_()
            yield slice(begin, begin + len(rows)), weights
            begin += len(rows)

    def draw(self, where: Tensor, u: Tensor, kind: Head) -> Tensor:
        """Draws tokens at the positions that ``where [B, *event]`` marks, with uniform numbers ``u [N]`` in float64.

        Args:
            where: the positions, bool.
            u: one number in [0, 1) for each marked position, in their order.
            kind: ``"denoiser"`` or ``"leave-one-out"``.

        Shapes: returns ``[N]``. Cost: one pass over the marked rows of the logits, in chunks.
        """
        chosen = where.flatten().nonzero().squeeze(-1)
        parts = [invert(weights, u[part]) for part, weights in self.weights(chosen, kind)]
        return torch.cat(parts) if parts else chosen

    def best(self, kind: Head = "denoiser") -> tuple[Tensor, Tensor]:
        """Returns the likeliest tokens of the posterior ``kind`` and their log-probabilities, both ``[B, *event]``."""
        value, token = self.log_probs(kind).max(-1)
        return token, value

    def _flat(self, dtype: torch.dtype) -> Tensor:
        return self.evidence.expand(self.x.shape).flatten().to(dtype)

    def _chunks(self, each: Tensor) -> tuple[Tensor, ...]:
        most = CACHED if self.logits.device.type == "cpu" else CHUNK
        return each.split(max(1, most // self.size))

    def _changed(self, logits: Tensor, own: Tensor, evidence: Tensor, kind: Head) -> Tensor:
        """Returns the logits ``[N, K]`` of a posterior, for present states ``own [N]``."""
        certain = evidence == torch.inf
        finite = evidence.masked_fill(certain, 0) if self.carries else evidence
        index = own.clamp(max=self.size - 1).unsqueeze(-1)
        add = lambda values, sign: values.scatter_add(-1, index, (sign * finite).unsqueeze(-1).to(values.dtype))
        if self.sharpen is not None:
            logits = self.sharpen(logits if self.head == "leave-one-out" else add(logits, -1))
            logits = add(logits, 1) if kind == "denoiser" else logits
        elif kind != self.head:
            logits = add(logits, 1 if kind == "denoiser" else -1)
        if self.carries and kind == "denoiser":
            only = torch.full_like(logits, -torch.inf).scatter(-1, index, 0.0)
            logits = torch.where(certain.unsqueeze(-1), only, logits)
        return logits

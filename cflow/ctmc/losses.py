"""Losses of token paths, and the integrand of the bound from which most of them follow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cflow.ctmc.categorical import CHUNK
from cflow.ctmc.noising import dense_weight, number_weight
from cflow.ctmc.rates import Rate
from cflow.paths import PathSample
from cflow.shapes import mean_rows, rows

__all__ = ["loss", "nats_per_time"]


def loss(path: Any, prediction: Tensor, sample: PathSample) -> Tensor:
    """Computes the loss of a path per item, ``[B]``, in nats per token, in float32 or better."""
    x, x1, counted = sample.xt, sample.x1, sample.mask
    crossed = path.minimised == "cross-entropy"
    if path.source.absorbing and path.counts and not crossed:
        # With counts, the average over hidden tokens is the bound per token.
        hidden = x == path.source.mask
        return mean_rows(_surprise(prediction, x1), hidden if counted is None else hidden & counted)
    if crossed:
        return mean_rows(_surprise(_denoiser(path, prediction, x, sample.t), x1), counted)
    each = nats_per_time(path, prediction, x, x1, sample.t, path.loss_rate, dtype=_precise(prediction))
    weight = number_weight(path, x, x1, sample.t, counted) if path.by_number else dense_weight(path, sample.t)
    return mean_rows(each * weight.reshape(-1, *(1,) * (x.dim() - 1)).to(each.dtype), counted)


def nats_per_time(
    path: Any, prediction: Tensor, x: Tensor, x1: Tensor, t: Tensor, rate: Rate, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    r"""Computes the integrand of the bound on the negative log-likelihood at each position, ``[B, *event]``.

    .. math:: \sum_{j \ne x} \Big[ R^\theta(x, j) - R(x, j \mid x_1)
              + R(x, j \mid x_1) \log \frac{R(x, j \mid x_1)}{R^\theta(x, j)} \Big]

    where :math:`R^\theta` is the average of the rate over the network's posterior. Every term is zero or positive.

    Args:
        path: the path, bound to its source.
        prediction: the network's logits ``[B, *event, K]``.
        x: the states ``[B, *event]``.
        x1: the tokens of the data ``[B, *event]``.
        t: the times ``[B]``.
        rate: the rate.
        dtype: the dtype of the computation.

    Cost: a few tensors of ``[B, *event, states]``; without gradients, a chunk of rows at a time.
    """
    if torch.is_grad_enabled() or x.numel() * path.source.states <= CHUNK or len(x) <= 1:
        return _nats(path, prediction, x, x1, t, rate, dtype)
    count = max(1, CHUNK // (rows(x).shape[1] * path.source.states))
    parts = zip(*(each.split(count) for each in (prediction, x, x1, t.expand(len(x)))))
    return torch.cat([_nats(path, *part, rate, dtype) for part in parts])


def _nats(path: Any, prediction: Tensor, x: Tensor, x1: Tensor, t: Tensor, rate: Rate, dtype: torch.dtype) -> Tensor:
    at = path.moment(x, t)
    log_p = path.posterior(prediction, x, t).log_probs("denoiser", dtype=dtype)
    if not rate.reshuffles(path.source):
        # Only jumps to the data: the sums have a closed form.
        size = log_p.shape[-1]
        mine = log_p.gather(-1, x.clamp(max=size - 1).unsqueeze(-1)).squeeze(-1).exp().masked_fill(x >= size, 0)
        surprise = -log_p.gather(-1, x1.unsqueeze(-1)).squeeze(-1)
        pace = (at.d_kappa / at.remaining).to(dtype)
        possible = (at.own > 0).to(dtype)
        return pace * possible * (torch.where(x == x1, 0.0, surprise - 1) + 1 - mine)
    table = path.table(x, t)
    true = rate.conditional(at, x, x1, table).to(dtype)
    model = rate.expected(at, x, log_p.exp(), table)
    # With the logarithm of the ratio: no cancellation where the two are equal, no overflow where they are far apart.
    tiny = torch.finfo(dtype).tiny
    log_ratio = model.clamp(min=tiny).log() - true.clamp(min=tiny).log()
    near = log_ratio < 1
    equal = true * (torch.expm1(log_ratio.where(near, 0.0)) - log_ratio)
    return torch.where(near, equal, model - true - true * log_ratio).sum(-1)


def _precise(prediction: Tensor) -> torch.dtype:
    return torch.promote_types(prediction.dtype, torch.float32)


def _denoiser(path: Any, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Returns logits of the denoiser's posterior."""
    if path.head == "denoiser" or path.source.absorbing:
        return prediction
    evidence = path.evidence(x, t).expand(x.shape)
    index = x.clamp(max=prediction.shape[-1] - 1).unsqueeze(-1)
    return prediction.to(_precise(prediction)).scatter_add(-1, index, evidence.to(_precise(prediction)).unsqueeze(-1))


def _surprise(logits: Tensor, x1: Tensor) -> Tensor:
    """Computes the cross-entropy at each position, ``[B, *event]``."""
    flat = logits.to(_precise(logits)).reshape(-1, logits.shape[-1])
    return F.cross_entropy(flat, x1.flatten(), reduction="none").reshape(x1.shape)

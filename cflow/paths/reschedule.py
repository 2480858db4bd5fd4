"""Evaluates a trained field on another path: schedule and prediction type can be changed after training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cflow.fields.wrapper import FieldWrapper
from cflow.paths.affine import AffinePath
from cflow.registry import register
from cflow.shapes import expand_like

__all__ = ["Rescheduled"]


@register("paths.Rescheduled")
class Rescheduled(FieldWrapper):
    r"""Converts a field that was trained on one affine path to the prediction of another one.

    Two affine paths with the same ends have the same marginals up to scale. With :math:`\tau` the time at which the
    trained path has the ratio :math:`\alpha'_t / \sigma'_t`,

    .. math:: x'_t = c \, x_\tau, \quad c = \sqrt{\frac{\alpha_t'^2 + \sigma_t'^2}{\alpha_\tau^2 + \sigma_\tau^2}},
              \quad \mathbb E'[x_1 | x'_t] = \mathbb E[x_1 | x_\tau],

    so the field at :math:`(\tau, x'_t / c)` determines the expected ends, which are converted to ``path``'s prediction.
    The only divisions by a weight that vanishes at an end are those of the trained prediction, and the field is not
    evaluated there (``interval``).

    Args:
        field: the trained field.
        trained: the path on which it was trained.
        path: the new path; it must have the same ends.

    Cost: one function evaluation.

    Raises:
        ValueError: if the two paths differ at an end, or only the new one predicts logits.
        TypeError: when called with ``s``.

    Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364;
    Pokle et al., Training-free Linear Image Inverses via Flows, 2023, arXiv:2310.04432.

    Example:
        >>> from cflow import fields, paths
        >>> field = Rescheduled(fields.MLP(2), trained=paths.Linear(), path=paths.Cosine())
        >>> field(torch.tensor(0.5), torch.zeros(4, 2)).shape
        torch.Size([4, 2])
    """

    two_times = False

    def __init__(self, field: nn.Module, trained: AffinePath, path: AffinePath):
        super().__init__(field)
        self.trained, self.path = trained, path
        if path.predict == "logits" != trained.predict:
            raise ValueError(
                f"Rescheduled({trained!r} -> {path!r}): the field was not trained to logits, and its posterior mean "
                f"may be outside the simplex; choose predict='x1'."
            )
        self._check_ends()
        self._between = self._interval()

    @property
    def interval(self) -> tuple[float, float]:
        """The times at which both paths, in their own time, are well conditioned."""
        return self._between

    def _check_ends(self) -> None:
        """Raises if the weights of the two paths differ at an end: they then connect different distributions."""
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        for name in ("alpha", "sigma"):
            gap = (getattr(self.trained, name)(ends) - getattr(self.path, name)(ends)).abs().max()
            if gap > 0.02:
                raise ValueError(
                    f"Rescheduled({self.trained!r} -> {self.path!r}): {name} differs by {float(gap):.2g} at an end; "
                    f"choose a path with the same ends (sigma_min)."
                )

    def _interval(self) -> tuple[float, float]:
        """Maps the trained interval to times of the new path; an end at 0 or 1 stays there."""
        inner = tuple(
            default if bound == default else float(self.path.time_at(self.trained.alpha(at), self.trained.sigma(at)))
            for default, bound in zip((0.0, 1.0), self.trained.ends_interval)
            for at in [torch.tensor(bound, dtype=torch.float64)]
        )
        low, high = self.path.interval
        return max(low, inner[0]), min(high, inner[1])

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        """Returns the prediction of the new path at ``(t, x)`` given ``context``; ``s`` must be None."""
        if s is not None:
            raise TypeError("Rescheduled(s=...): only fields with one time can change their schedule; omit s.")
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        tau = self.trained.time_at(alpha, sigma).clamp(*self.trained.ends_interval)
        norm = torch.hypot(self.trained.alpha(tau), self.trained.sigma(tau))
        inner = x * expand_like(norm / torch.hypot(alpha, sigma), x)
        prediction = self.field(tau, inner, context)
        return self.path.express(*self.trained.ends(prediction, inner, tau), t)

"""Rectified flow: straight lines between independent ends, the objective of large image models."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cflow.objectives.matching.errors import Square
from cflow.objectives.matching.flow_matching import FlowMatching, MatchingBatch
from cflow.objectives.objective import check_objects
from cflow.paths import Path
from cflow.registry import register
from cflow.shapes import expand_like
from cflow.times import LogitNormal

__all__ = ["RectifiedFlow"]


@register("objectives.RectifiedFlow")
class RectifiedFlow(FlowMatching):
    r"""Trains the first rectified flow: velocities of straight lines between independent noise and data.

    .. math:: L = \ell\bigl(v_\theta(t, (1 - t) x_0 + t x_1),\; x_1 - x_0\bigr), \qquad (x_0, x_1) \sim p_0 \times p_1

    This is a preset of :class:`FlowMatching` with the choices of Stable Diffusion 3. Its weightings are distributions
    of the times: ``times.LogitNormal()``, ``times.Mode(1.29)``, ``times.CosMap()``; the first paper uses
    ``times.Uniform()``. :func:`cflow.metrics.straightness` and :func:`cflow.metrics.transport_cost` measure the result,
    and :func:`cflow.training.reflow` trains it further.

    If the flow predicts ``x1``, the errors are those of ``x1``. The minimum is the same, with another weight (errors of
    velocities would be divided by ``1 - t``).

    Args:
        times: the distribution of the training times. Default: None, ``times.LogitNormal()``.
        error: the distance of a prediction from its target: ``objectives.Square()``, ``PseudoHuber(0.06)``, ``Huber()``
            or ``FeatureError(network)``, which compares the ends that the velocities lead to. Default: None,
            ``objectives.Square()``.
        weight: a function ``(path, t) -> [B]``. Default: None, no weight.
        condition_dropout: see :class:`FlowMatching`.

    Cost: one function evaluation.

    Raises:
        TypeError: for options that are not objects.
        ValueError: for a flow whose path is not ``paths.Linear()`` with predictions of velocities or of ``x1``.

    Source: Liu, Gong and Liu, Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow,
    2022, arXiv:2209.03003; times after Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image
    Synthesis, 2024, arXiv:2403.03206, section 3.1; errors after Lee et al., Improving the Training of Rectified
    Flows, 2024, arXiv:2405.20320.

    Example:
        >>> import cflow, torch
        >>> from cflow import bases, fields, paths
        >>> flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
        >>> RectifiedFlow()(flow, torch.randn(16, 2)).shape
        torch.Size([16])
    """

    masks = False
    curved = False

    def __init__(self, times=None, error=None, weight=None, condition_dropout: float = 0.0):
        super().__init__(None, LogitNormal() if times is None else times, weight, condition_dropout)
        check_objects(type(self).__name__, "objectives.PseudoHuber()", error=error)
        self.error = Square() if error is None else error

    def _match(self, flow: Any, path: Path, batch: MatchingBatch, t: Tensor, context) -> tuple[Tensor, Tensor]:
        sample = path.sample(batch.x0, batch.x1, t, noise=batch.noise)
        prediction = flow.predict(t, sample.xt, context)
        if path.predict == "velocity" and getattr(self.error, "ends", False):
            return self.error(sample.xt + expand_like(1 - t, prediction) * prediction, batch.x1), t
        return self.error(prediction, sample.target), t

    def _path(self, flow: Any) -> Path:
        path = super()._path(flow)
        if not path.straight or path.predict not in ("velocity", "x1"):
            raise ValueError(
                f"{type(self).__name__}: the flow needs paths.Linear() with 'velocity' or 'x1', not {path!r}; convert "
                f"it by flow.with_path(paths.Linear())."
            )
        return path

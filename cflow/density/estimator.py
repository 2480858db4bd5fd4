"""The base class of the density estimators: hyper-parameters, training in standardised units, scores in chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from torch import Tensor

from cflow.arguments import check_integer
from cflow.bijections import Compose, Standardise
from cflow.density.flows import make_flow, objective_of
from cflow.density.inputs import is_number, seed_of
from cflow.density.learning import CHUNK, Rows, Settings, learn
from cflow.density.rows import check_rows
from cflow.density.units import tails, units_of
from cflow.objectives import MaximumLikelihood
from cflow.standardised_context import StandardisedContext

__all__ = ["FlowEstimator"]


class FlowEstimator(DensityMixin, BaseEstimator):
    """Stores the hyper-parameters of a flow and its training; :class:`FlowDensity` describes them."""

    def __init__(
        self,
        flow: Any = "nsf",
        *,
        flow_options: dict | None = None,
        max_steps: int = 2000,
        batch_size: int = 256,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        standardise: Any = True,
        validation_fraction: float = 0.1,
        check_every: int = 50,
        patience: int = 10,
        random_state: Any = None,
        device: str = "cpu",
        verbose: bool | int = False,
    ):
        self.flow = flow
        self.flow_options = flow_options
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.standardise = standardise
        self.validation_fraction = validation_fraction
        self.check_every = check_every
        self.patience = patience
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def _learn(self, x: np.ndarray, context: np.ndarray | None, weights: np.ndarray | None) -> None:
        """Trains the flow of ``x [N, D]`` given ``context [N, C]``, and stores it in float64 as ``flow_``."""
        settings = self._settings()
        if weights is not None:
            some = weights > 0
            x, context, weights = x[some], None if context is None else context[some], weights[some]
            weights = weights * (len(weights) / weights.sum())
        check_rows(self, x, context, "fit")
        features, contexts = x.shape[1], 0 if context is None else context.shape[1]
        # The initial weights are random too: they come from the seed, and the global generator is restored.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed)
            flow = make_flow(self.flow, features, contexts, self.flow_options, type(self).__name__)
        objective = objective_of(flow)

        # Units change in float64: in float32, years or coordinates would lose the digits in which they differ.
        units, x_inside = self._standardised(x, weights, flow.dtype)
        context_units, context_inside = self._standardised(context, weights, flow.dtype)
        robust = self.standardise == "robust"
        if robust:  # values far from the middle no longer set the scale, so they are moved towards it
            flow = flow.with_transform(*tails(features))
            context_inside = None if context is None else Compose(*tails(contexts)).encode(context_inside)[0]
        counts = None if weights is None else torch.from_numpy(weights)
        learned = learn(flow, objective, Rows(x_inside, context_inside, counts), settings)

        self.history_, self.n_iter_, self.best_step_ = learned.history, learned.steps, learned.best_step
        self.seed_ = settings.seed
        flow = flow.double()
        if context_units is not None:
            flow = StandardisedContext(flow, Compose(context_units, *tails(contexts)) if robust else context_units)
        if units is not None:
            flow = flow.with_transform(units)
            if isinstance(objective, MaximumLikelihood):  # the history is in nats of the original data too
                shift = float(units.scale.log().sum())
                for row in self.history_:
                    row |= {key: row[key] + shift for key in ("loss", "validation", "nats") if key in row}
        self.flow_ = flow.to(settings.device).eval()

    def _standardised(
        self, values: np.ndarray | None, weights: np.ndarray | None, dtype: torch.dtype
    ) -> tuple[Standardise | None, Tensor | None]:
        """Returns the standardising transform in float64, and the standardised values for the flow."""
        if values is None or not self.standardise:
            return None, None if values is None else torch.tensor(values, dtype=dtype)
        loc, scale = units_of(values, weights, self.standardise == "robust", type(self).__name__)
        units = Standardise(values.shape[1], torch.from_numpy(loc), torch.from_numpy(scale))
        return units, units.encode(torch.tensor(values))[0].to(dtype)

    def _settings(self) -> Settings:
        """Checks the hyper-parameters."""
        name = type(self).__name__
        for key in ("max_steps", "batch_size", "check_every", "patience"):
            why = "this is not a whole number of 1 or more; pass one."
            check_integer(name, key, getattr(self, key), 1, why, numpy=True)
        plain = isinstance(self.standardise, bool | np.bool_ | int | str)  # the truth value of an array is ambiguous
        if not plain or self.standardise not in (True, False, "robust"):
            raise ValueError(
                f"{name}(standardise={self.standardise!r}): this is not an option; pass True, False or 'robust'."
            )
        if not (is_number(self.validation_fraction) and 0 <= self.validation_fraction < 1):
            raise ValueError(
                f"{name}(validation_fraction={self.validation_fraction!r}): pass a share of the rows in [0, 1), or 0 "
                f"to hold out none."
            )
        rates = is_number(self.lr) and is_number(self.weight_decay)
        if not rates or not self.lr > 0 or not self.weight_decay >= 0:
            raise ValueError(
                f"{name}(lr={self.lr!r}, weight_decay={self.weight_decay!r}): pass lr > 0 and weight_decay >= 0."
            )
        return Settings(
            int(self.max_steps), int(self.batch_size), float(self.lr), float(self.weight_decay),
            float(self.validation_fraction), int(self.check_every), int(self.patience), self.device,
            seed_of(self.random_state), bool(self.verbose),
        )  # fmt: skip

    @torch.no_grad()
    def _scores(self, x: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
        """Computes log-densities in chunks, with constant memory."""
        scores = np.empty(len(x))
        # Flows that dequantise draw noise: the same noise for the same rows.
        generator = torch.Generator(self.flow_.device).manual_seed(self.seed_)
        for start in range(0, len(x), CHUNK):
            part = slice(start, start + CHUNK)
            given = None if context is None else torch.tensor(context[part])
            scores[part] = self.flow_.log_prob(torch.tensor(x[part]), given, generator=generator).cpu().numpy()
        return scores


def weighted_mean(scores: np.ndarray, weights: np.ndarray | None) -> float:
    """Returns the mean of scores with weights."""
    return float(np.average(scores, weights=weights))

"""Metrics: distances of samples, calibration, likelihoods in bits, variety of tokens, straightness of paths."""

from cflow.metrics.calibration import (
    Calibration,
    Coverage,
    expected_coverage,
    pit,
    ranks,
    simulation_based_calibration,
    tarp,
)
from cflow.metrics.classifier import classifier_two_sample
from cflow.metrics.discrepancy import energy_distance, mmd
from cflow.metrics.estimate import Estimate
from cflow.metrics.frechet import frechet_distance
from cflow.metrics.interpolation import ot_interpolation
from cflow.metrics.likelihood import bits_per_dim, bits_per_token, perplexity
from cflow.metrics.neighbours import nearest_distances
from cflow.metrics.tokens import distinct_ngrams, token_entropy
from cflow.metrics.transport import normalised_path_energy, path_energy, straightness, transport_cost
from cflow.metrics.wasserstein import sliced_wasserstein2, wasserstein1, wasserstein2
from cflow.metrics.weighting import Importance, importance

__all__ = [
    "Calibration",
    "Coverage",
    "Estimate",
    "Importance",
    "bits_per_dim",
    "bits_per_token",
    "classifier_two_sample",
    "distinct_ngrams",
    "energy_distance",
    "expected_coverage",
    "frechet_distance",
    "importance",
    "mmd",
    "nearest_distances",
    "normalised_path_energy",
    "ot_interpolation",
    "path_energy",
    "perplexity",
    "pit",
    "ranks",
    "simulation_based_calibration",
    "sliced_wasserstein2",
    "straightness",
    "tarp",
    "token_entropy",
    "transport_cost",
    "wasserstein1",
    "wasserstein2",
]

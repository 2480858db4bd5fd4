"""Probability paths between base and data, and what the network is asked to predict on them."""

from .affine import AffinePath, PathSample
from .reschedule import Rescheduled
from .schedules import Cosine, Linear, Polynomial, VariancePreserving

__all__ = ["AffinePath", "Cosine", "Linear", "PathSample", "Polynomial", "Rescheduled", "VariancePreserving"]

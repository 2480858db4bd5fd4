"""Base distributions: what flows map to the distribution of the data, simple ones or given samples."""

from cflow.bases.base import Base
from cflow.bases.empirical import Empirical
from cflow.bases.laws import Mixture, Normal, StudentT, Uniform
from cflow.bases.orthant import Orthant
from cflow.bases.product import Product
from cflow.bases.simplex import Simplex

__all__ = ["Base", "Empirical", "Mixture", "Normal", "Orthant", "Product", "Simplex", "StudentT", "Uniform"]

"""Objectives: how a flow is trained. Each is called as ``objective(flow, x, context) -> [B]``."""

from .bridge_matching import BridgeBatch, BridgeMatching
from .flow_matching import FlowMatching, MatchingBatch
from .maximum_likelihood import LikelihoodBatch, MaximumLikelihood
from .multi_marginal import MultiMarginal, MultiMarginalBatch
from .objective import Objective
from .weights import MinSNR, VelocityWeight

__all__ = [
    "BridgeBatch",
    "BridgeMatching",
    "FlowMatching",
    "LikelihoodBatch",
    "MatchingBatch",
    "MaximumLikelihood",
    "MinSNR",
    "MultiMarginal",
    "MultiMarginalBatch",
    "Objective",
    "VelocityWeight",
]

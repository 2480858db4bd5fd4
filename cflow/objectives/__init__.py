"""Objectives: how a flow is trained. Each is called as ``objective(flow, x, context) -> [B]``."""

from .flow_matching import FlowMatching, MatchingBatch
from .objective import Objective
from .weights import MinSNR, VelocityWeight

__all__ = ["FlowMatching", "MatchingBatch", "MinSNR", "Objective", "VelocityWeight"]

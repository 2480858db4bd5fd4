"""Objectives: how a flow is trained. Each is called as ``objective(flow, x, context) -> [B]``."""

from .batch import Shared
from .bridge_matching import BridgeMatching
from .consistency import ConsistencyFlowMatching
from .errors import FeatureError, Huber, PseudoHuber, Square
from .ffjord import FFJORD, FFJORDBatch
from .flow_matching import FlowMatching, MatchingBatch
from .importance_weighted import AlphaDivergence, DoublyReparameterised, ForwardKL
from .lagrangian import LagrangianSelfDistillation
from .maximum_likelihood import LikelihoodBatch, MaximumLikelihood
from .mean_flow import MeanFlow
from .multi_marginal import MultiMarginal, MultiMarginalBatch
from .objective import Objective
from .rectified_flow import RectifiedFlow
from .reflow import Distillation, Reflow
from .shortcut import Shortcut
from .two_times import StepBatch, TwoTimes
from .variational import LatentBatch, PathDerivative, ReverseKL, Variational
from .weights import MinSNR, VelocityWeight

__all__ = [
    "FFJORD",
    "AlphaDivergence",
    "BridgeMatching",
    "ConsistencyFlowMatching",
    "Distillation",
    "DoublyReparameterised",
    "FFJORDBatch",
    "FeatureError",
    "FlowMatching",
    "ForwardKL",
    "Huber",
    "LagrangianSelfDistillation",
    "LatentBatch",
    "LikelihoodBatch",
    "MatchingBatch",
    "MaximumLikelihood",
    "MeanFlow",
    "MinSNR",
    "MultiMarginal",
    "MultiMarginalBatch",
    "Objective",
    "PathDerivative",
    "PseudoHuber",
    "RectifiedFlow",
    "Reflow",
    "ReverseKL",
    "Shared",
    "Shortcut",
    "Square",
    "StepBatch",
    "TwoTimes",
    "Variational",
    "VelocityWeight",
]

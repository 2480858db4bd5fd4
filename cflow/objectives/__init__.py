"""Objectives: the losses that train a flow. Each is called as ``objective(flow, x, context) -> [B]``."""

from cflow.objectives.batch import Shared
from cflow.objectives.few_step.consistency import ConsistencyFlowMatching
from cflow.objectives.few_step.lagrangian import LagrangianSelfDistillation
from cflow.objectives.few_step.mean_flow import MeanFlow
from cflow.objectives.few_step.reflow import Distillation, Reflow
from cflow.objectives.few_step.shortcut import Shortcut
from cflow.objectives.few_step.two_times import StepBatch, TwoTimes
from cflow.objectives.likelihood.ffjord import FFJORD, FFJORDBatch
from cflow.objectives.likelihood.maximum_likelihood import LikelihoodBatch, MaximumLikelihood
from cflow.objectives.matching.bridge_matching import BridgeMatching
from cflow.objectives.matching.errors import FeatureError, Huber, PseudoHuber, Square
from cflow.objectives.matching.flow_matching import FlowMatching, MatchingBatch
from cflow.objectives.matching.multi_marginal import MultiMarginal, MultiMarginalBatch
from cflow.objectives.matching.rectified_flow import RectifiedFlow
from cflow.objectives.matching.weights import MinSNR, VelocityWeight
from cflow.objectives.objective import Objective
from cflow.objectives.variational.importance_weighted import AlphaDivergence, DoublyReparameterised, ForwardKL
from cflow.objectives.variational.reverse_kl import LatentBatch, PathDerivative, ReverseKL, Variational

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

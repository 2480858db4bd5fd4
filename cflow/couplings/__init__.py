"""Which base sample goes with which data sample.

A coupling is called as ``coupling(x0, x1, context=None, generator=None)`` on one batch of base samples ``x0``, data
samples ``x1`` and what the data samples are conditioned on, and gives them back paired row by row.

================== ============================================= ==============================================
coupling           pairs                                         take it for
================== ============================================= ==============================================
Independent        as chance drew them                           conditional models, scores, stochastic samplers
OptimalTransport   at the least squared distance, one to one     straight paths without a condition
ConditionalOT      the same, only where conditions agree         straight paths given classes or numbers
Sinkhorn           drawn from an entropic plan                   Schroedinger bridges; matching two data sets
Unbalanced         drawn from a plan that may leave mass out     two data sets with outliers or modes of their own
Partial            the cheapest share, one to one                the same with a fixed share to drop
Paired             as the data set brings them along             reflow, measured pairs (:func:`paired` builds them)
================== ============================================= ==============================================

All randomness comes from ``generator``; all can be called from several threads at once. :class:`Sinkhorn` and
:class:`Unbalanced` also give the transport :class:`Plan` itself, and warn with :class:`ConvergenceWarning` where it is
not what was asked for.
"""

from cflow.couplings.conditional import ConditionalOT
from cflow.couplings.coupling import Coupling
from cflow.couplings.entropic import ConvergenceWarning, Plan
from cflow.couplings.independent import Independent
from cflow.couplings.optimal import OptimalTransport
from cflow.couplings.pairs import Paired, paired
from cflow.couplings.partial import Partial
from cflow.couplings.sinkhorn import Sinkhorn
from cflow.couplings.unbalanced import Unbalanced

__all__ = [
    "ConditionalOT",
    "ConvergenceWarning",
    "Coupling",
    "Independent",
    "OptimalTransport",
    "Paired",
    "Partial",
    "Plan",
    "Sinkhorn",
    "Unbalanced",
    "paired",
]

"""Couplings decide which base sample is paired with which data sample in a training batch.

A coupling is called as ``coupling(x0, x1, context=None, generator=None)`` on one batch: base samples ``x0``, data
samples ``x1`` and the contexts of the data samples. It returns them paired row by row.

| coupling                  | pairs                                 | use it for                                   |
|---------------------------|---------------------------------------|----------------------------------------------|
| :class:`Independent`      | as drawn, at random                   | conditional models, scores, SDE solvers      |
| :class:`OptimalTransport` | at least squared distance, one to one | straight paths without a condition           |
| :class:`ConditionalOT`    | the same, only where conditions agree | straight paths given classes or numbers      |
| :class:`Sinkhorn`         | drawn from an entropic plan           | Schroedinger bridges; matching two data sets |
| :class:`Unbalanced`       | drawn from a plan that may omit mass  | data sets with outliers or unshared modes    |
| :class:`Partial`          | the cheapest share, one to one        | the same, with a fixed share to drop         |
| :class:`Paired`           | as stored in the data set             | reflow, measured pairs (see :func:`paired`)  |

All randomness comes from ``generator``. All couplings can be called from several threads at once. :class:`Sinkhorn` and
:class:`Unbalanced` also compute the transport :class:`Plan`, and warn with :class:`ConvergenceWarning` if it has not
converged.
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

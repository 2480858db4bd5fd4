"""The divergence of a field, computed with its value in one pass: in closed form, from the Jacobian, or by probes.

================== ======================== ============================== ========================================
divergence         value                    cost of a call                 take it
================== ======================== ============================== ========================================
``Analytic``       exact                    one evaluation and, with two   for fields that have a closed form
                                            hidden layers, at most one     (``MLP``, ``ConcatSquash``,
                                            more, whatever D; deeper,      ``Potential``), in training and
                                            D tangents at most             evaluation
``Exact``          exact, with              an evaluation and D products   for other fields, to evaluate while D is
                   Frobenius norm                                          some dozens; the default
``Hutchinson``     unbiased, with norm and  an evaluation and ``probes``   to train other fields: noise in a
                   standard error           products                       gradient averages out over steps
``HutchPlusPlus``  unbiased, as above       an evaluation, ``products``    to evaluate where D products are too
                                            products, a QR decomposition   many and few directions carry most of
``XTrace``         unbiased, as above       of ``[D, products / 3]``, or   the Jacobian; ``XTrace`` is the more
                                            ``/ 2``                        exact, ``HutchPlusPlus`` the simpler
================== ======================== ============================== ========================================

A product, with the transposed Jacobian, takes about as long as an evaluation. In training all but ``Analytic``
differentiate twice: a product costs about three evaluations, and the closed form about as much as it costs to train the
field by any loss. A likelihood is reported as exact with the first two and as an estimate with the others
(``flow.likelihood``); ``flow.log_prob_estimate`` gives the standard error.
"""

from cflow.divergence.analytic import Analytic
from cflow.divergence.divergence import Divergence, Estimator
from cflow.divergence.exact import Exact
from cflow.divergence.hutch_plus_plus import HutchPlusPlus
from cflow.divergence.hutchinson import Hutchinson
from cflow.divergence.xtrace import XTrace

__all__ = ["Analytic", "Divergence", "Estimator", "Exact", "HutchPlusPlus", "Hutchinson", "XTrace"]

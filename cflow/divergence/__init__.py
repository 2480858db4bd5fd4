"""The divergence of a field, computed together with its value: in closed form, from the Jacobian, or by probes.

| divergence             | value          | cost, besides one evaluation   | use it                        |
|------------------------|----------------|--------------------------------|-------------------------------|
| :class:`Analytic`      | exact          | at most one evaluation (below) | for fields with a closed form |
| :class:`Exact`         | exact, norm    | D products                     | to evaluate other fields      |
| :class:`Hutchinson`    | unbiased, norm | ``probes`` products            | to train other fields         |
| :class:`HutchPlusPlus` | unbiased, norm | ``products`` products, one QR  | to evaluate if D is large     |
| :class:`XTrace`        | unbiased, norm | ``products`` products, one QR  | the same, more accurate       |

``Analytic`` works for ``fields.MLP``, ``fields.ConcatSquash`` and ``fields.Potential``, in training and evaluation. The
figure in the table is for two hidden layers and any D; deeper networks need at most D tangents. ``Exact`` is the
default, for D up to some dozens. ``Hutchinson`` is for training, since noise in a gradient averages out over steps.
``HutchPlusPlus`` and ``XTrace`` are for evaluation if D products are too expensive and the Jacobian is large in few
directions only; their QR decompositions are of ``[D, products / 3]`` and ``[D, products / 2]``. "Norm" is the Frobenius
norm of the Jacobian.

A product, with the transposed Jacobian, takes about as long as an evaluation. In training, all but ``Analytic``
differentiate twice: a product costs about three evaluations, while the closed form costs about as much as training the
field by any other loss. ``flow.likelihood`` is ``"exact"`` for the first two and ``"estimate"`` for the others;
``flow.log_prob_estimate`` then returns the standard error.
"""

from cflow.divergence.analytic import Analytic
from cflow.divergence.divergence import Divergence, Estimator
from cflow.divergence.exact import Exact
from cflow.divergence.hutch_plus_plus import HutchPlusPlus
from cflow.divergence.hutchinson import Hutchinson
from cflow.divergence.xtrace import XTrace

__all__ = ["Analytic", "Divergence", "Estimator", "Exact", "HutchPlusPlus", "Hutchinson", "XTrace"]

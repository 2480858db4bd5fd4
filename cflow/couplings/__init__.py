"""Which base sample goes with which data sample.

A coupling is called as ``coupling(x0, x1, context=None, generator=None)`` on one batch of base samples ``x0``, data
samples ``x1`` and what the data samples are conditioned on, and gives them back paired row by row:

- :class:`Independent` leaves the random pairs of the draw;
- :class:`OptimalTransport` pairs a batch at the least total squared distance;
- :class:`Paired` keeps pairs that the data set brings along, as reflow's do (:func:`paired` builds such data).
"""

from .coupling import Coupling
from .independent import Independent
from .optimal import OptimalTransport
from .pairs import Paired, paired

__all__ = ["Coupling", "Independent", "OptimalTransport", "Paired", "paired"]

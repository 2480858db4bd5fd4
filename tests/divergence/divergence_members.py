"""All divergences of the package."""

from cflow.divergence import Analytic, Exact, Hutchinson, HutchPlusPlus, XTrace

BY_PRODUCTS = [
    Exact(),
    Exact(chunk=1),
    Exact(chunk=2),
    Hutchinson(),
    Hutchinson(probes=3),
    Hutchinson("gaussian", 2),
    HutchPlusPlus(products=4),
    XTrace(products=4),
]
MEMBERS = [Analytic(), *BY_PRODUCTS]

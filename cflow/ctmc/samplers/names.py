"""Samplers by name, for the command line and recipes."""

from __future__ import annotations

from typing import Any

from cflow.ctmc.samplers.corrected import PredictorCorrector
from cflow.ctmc.samplers.exact import FirstHitting, Thinning
from cflow.ctmc.samplers.ordered import Ordered
from cflow.ctmc.samplers.remasking import Remasking
from cflow.ctmc.samplers.sampler import Sampler
from cflow.ctmc.samplers.stepping import Analytic, Euler, TauLeaping
from cflow.keywords import made_by_name

__all__ = ["SAMPLERS", "sampler_by_name"]

SAMPLERS: dict[str, type[Sampler]] = {
    "analytic": Analytic,
    "euler": Euler,
    "first_hitting": FirstHitting,
    "ordered": Ordered,
    "predictor_corrector": PredictorCorrector,
    "remasking": Remasking,
    "tau_leaping": TauLeaping,
    "thinning": Thinning,
}


def sampler_by_name(name: str, **options: Any) -> Sampler:
    """Builds a sampler of token flows from its name and its constructor's options.

    Args:
        name: a key of ``SAMPLERS``, such as ``"analytic"``; a hyphen counts as an underscore.
        options: arguments of the sampler's constructor.

    Raises:
        ValueError: if there is no such sampler, or the sampler has no such option; the message lists the valid ones.

    Example:
        >>> sampler_by_name("first-hitting", together=2)
        FirstHitting(together=2, temperature=1.0, top_k=None, top_p=1.0)
    """
    return made_by_name("sampler_by_name", "sampler", SAMPLERS, name.replace("-", "_"), options)

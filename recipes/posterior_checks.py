"""Is the posterior of ``posterior.py`` right? Calibration over many data sets, and a verdict in one sentence.

This module is not a recipe. It judges what was learned, and advises what to do about it.
"""

import math
from typing import NamedTuple

import torch

from cflow import metrics

ENOUGH = 100  # held-out simulations, for calibration to show more than gross faults
LEVELS = (0.5, 0.9, 0.95)  # of the coverage that is printed


class Checked(NamedTuple):
    """What the checks of a posterior measured."""

    ranked: metrics.Calibration
    coverage: metrics.Coverage
    log_prob: torch.Tensor  # of the true parameters under their posterior, [N]


def calibrated(posterior, test: tuple[torch.Tensor, torch.Tensor], draws: int, solver: dict, generator) -> Checked:
    """Checks a posterior over data sets of all kinds, by this many draws for each."""
    theta, x = test
    parts = [posterior.sample_and_log_prob((draws,), part, generator=generator, **solver) for part in x.split(50)]
    drawn, logp = (torch.cat(each, 1) for each in zip(*parts))
    with torch.no_grad():
        truth = posterior.log_prob(theta, x, **solver)
    ranked = metrics.simulation_based_calibration(drawn, theta, generator=generator)
    return Checked(ranked, metrics.expected_coverage(logp, truth, generator=generator), truth)


def log_prior(theta: torch.Tensor, held_out: torch.Tensor, bounds: torch.Tensor | None) -> tuple[float, str]:
    """Computes the mean log-density of held-out parameters without any data, and names the distribution."""
    if bounds is not None:
        return -float((bounds[1] - bounds[0]).log().sum()), "uniform within the bounds"
    centre, spread = theta.mean(0), theta.std(0)
    correlation = torch.cov(((theta - centre) / spread).T).reshape(len(spread), -1)
    correlation += 1e-6 * torch.eye(len(spread), dtype=theta.dtype)  # for parameters that determine each other
    normal = torch.distributions.MultivariateNormal(torch.zeros_like(centre), correlation)
    return float((normal.log_prob((held_out - centre) / spread) - spread.log().sum()).mean()), "normal, fitted"


def coverage_at(level: float, coverage: metrics.Coverage) -> tuple[float, float]:
    """Returns the coverage at a level, and its standard error."""
    at = int((coverage.levels - level).abs().argmin())
    return float(coverage.coverage[at]), float(coverage.standard_error[at])


def judge(checked: Checked, names: tuple[str, ...], prior: float) -> tuple[str, str]:
    """Finds the largest fault: ``(kind, its size)``.

    The kind is "too narrow", "too wide", "shifted", "uninformed", "untested" or "calibrated". A fault of the joint
    regions has to exceed two standard errors, and that of a single parameter three.
    """
    ranked, coverage, logp = checked
    count = len(logp)
    shift = ranked.bias * math.sqrt(12 * count)  # in standard errors, as the next two
    width = (ranked.dispersion - 12 * ranked.bias.square() - 1) / math.sqrt(0.8 / count)  # without the part of a shift
    excess = coverage.excess * math.sqrt(12 * count)
    most, widest, narrowest = (int(each.argmax()) for each in (shift.abs(), -width, width))
    if abs(shift[most]) > 3 and width[narrowest] < 3:
        side = "high" if shift[most] < 0 else "low"
        return "shifted", f"draws of {names[most]} are too {side} (mean rank {ranked.bias[most] + 0.5:.3f}, not 0.5)"
    for kind, sign, one in (("too narrow", -1, narrowest), ("too wide", 1, widest)):
        if sign * excess > 2:
            found = [(level, *coverage_at(level, coverage)) for level in LEVELS]
            level, covered, error = max(found, key=lambda each: sign * (each[1] - each[0]) / each[2])
            return kind, f"by {abs(covered - level):.3f} at {level:.2f} (error {error:.3f})"
        if -sign * width[one] > 3:
            return (
                kind,
                f"in {names[one]} (dispersion {ranked.dispersion[one]:.2f}, error {math.sqrt(0.8 / count):.2f})",
            )
    if float(logp.mean()) - prior < 2 * float(logp.std()) / math.sqrt(count):
        return "uninformed", "calibrated, but it says no more than the prior"
    if count < ENOUGH:
        return "untested", "no gross fault found"
    return "calibrated", "on average over the prior"


def verdict(kind: str, size: str, more: str, longer: str) -> str:
    """Writes the sentence that ends the checks.

    Args:
        kind, size: of :func:`judge`.
        more: how to simulate more, such as "simulate 2 to 4 times as many".
        longer: how to train longer or larger.
    """
    if kind == "calibrated":
        return f"calibrated, {size}; at one observation it can still be off: see recipes/guide/simulation.md"
    if kind == "untested":
        return f"{size}; {more}"
    if kind == "uninformed":
        return f"{size}: the data contain no information, or training failed; {longer}"
    if kind == "too wide":
        return f"too wide {size}: its intervals are safe, but larger than needed; {longer}, or {more}"
    return f"{kind}{':' * (kind == 'shifted')} {size}. Do not quote its intervals; {more}"

"""How straight and how short the paths of a flow are."""

from __future__ import annotations

from torch import Tensor

from cflow.metrics.estimate import Estimate, mean_estimate
from cflow.metrics.wasserstein import wasserstein2
from cflow.shapes import rows

__all__ = ["normalised_path_energy", "path_energy", "straightness", "transport_cost"]


def path_energy(trajectory: Tensor, times: Tensor) -> Tensor:
    r"""Computes the kinetic energy of each path, taken as straight between the given times.

    .. math:: \int_0^1 \lVert v_t \rVert^2 \, dt \approx \sum_k \frac{\lVert x_{k+1} - x_k \rVert^2}{t_{k+1} - t_k}

    It approaches the integral from below as the times get denser.

    Shapes: ``trajectory [T, B, *event]``, ``times [T]`` increasing; gives ``[B]``.

    Raises:
        ValueError: if the shapes do not agree, there are fewer than two times, or they do not increase.
    """
    velocity, widths = _velocity("path_energy", trajectory, times)
    return (velocity.square().sum(-1) * widths[:, None]).sum(0)


def straightness(trajectory: Tensor, times: Tensor) -> Estimate:
    r"""Measures how far paths are from straight lines at constant speed; zero for those.

    .. math:: \int_0^1 \mathbb E \bigl\lVert (x_1 - x_0) - \dot x_t \bigr\rVert^2 dt

    with velocities from differences between the given times: take enough of them (100, say), since two times are always
    joined by a straight line. Times that do not span one are rescaled to it. The standard error is over the batch.

    Shapes: ``trajectory [T, B, *event]``, ``times [T]`` increasing.

    Raises:
        ValueError: if the shapes do not agree, there are fewer than two times, or they do not increase.

    Source: Liu et al., Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow, 2022,
    arXiv:2209.03003, section 2.2.
    """
    if len(times) > 1 and times[-1] > times[0]:
        times = (times - times[0]) / (times[-1] - times[0])
    velocity, widths = _velocity("straightness", trajectory, times)
    displacement = rows(trajectory[-1] - trajectory[0])
    return mean_estimate(((displacement - velocity).square().sum(-1) * widths[:, None]).sum(0))


def transport_cost(x0: Tensor, x1: Tensor, power: float = 2.0) -> Estimate:
    r"""Averages how far a flow (or a coupling) carries: the ends of its paths, row by row.

    .. math:: \mathbb E \, \lVert x_1 - x_0 \rVert^p

    It does not grow from one reflow to the next for any :math:`p \ge 1`, and is at least ``wasserstein2(x0, x1) ** 2``
    for p = 2. The standard error is over the rows.

    Shapes: ``x0``, ``x1 [B, *event]``, two ends of one path per row.

    Raises:
        ValueError: if the shapes differ, there are no rows, or ``power`` is below one (such costs may grow).

    Source: Liu et al., Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow, 2022,
    arXiv:2209.03003, theorem 3.5.

    Example:
        >>> import torch
        >>> print(transport_cost(torch.zeros(4, 2), torch.ones(4, 2)))
        2 ± 0
    """
    if x0.shape != x1.shape or x0.ndim < 2 or len(x0) == 0:
        raise ValueError(
            f"transport_cost(x0 of shape {list(x0.shape)}, x1 of shape {list(x1.shape)}): rows are the two ends of one "
            f"path; pass the base samples and what the flow carries them to, both [B, *event], B of 1 or more."
        )
    if power < 1:
        raise ValueError(f"transport_cost(power={power}): costs that a reflow lowers are convex; pass 1 or more, or 2.")
    return mean_estimate(rows((x1 - x0).detach()).double().norm(dim=1) ** power)


def normalised_path_energy(kinetic_energy: Tensor, x0: Tensor, x1: Tensor) -> Estimate:
    r"""Measures how far a flow is from optimal transport; zero for the optimal one.

    .. math:: \bigl\lvert \mathbb E \textstyle\int_0^1 \lVert v_t \rVert^2 dt - W_2^2(q_0, q_1) \bigr\rvert
        \,/\, W_2^2(q_0, q_1)

    ``kinetic_energy`` comes from :func:`path_energy`, or from a solver's quadrature. The standard error is that of the
    mean energy; the distance is taken as known.

    Shapes: ``kinetic_energy [B]``; ``x0 [N, D]`` samples of the base, ``x1 [M, D]`` samples of the data. Cost: that of
    :func:`wasserstein2`.

    Raises:
        ValueError: if ``kinetic_energy`` is not ``[B]``, or the two samples are the same.

    Source: Tong et al., Simulation-free Schrödinger Bridges via Score and Flow Matching, 2023, arXiv:2307.03672,
    section 5.1.
    """
    if kinetic_energy.ndim != 1:
        raise ValueError(
            f"normalised_path_energy(kinetic_energy of shape {list(kinetic_energy.shape)}): one energy per path is "
            f"needed, [B]; path_energy(trajectory, times) gives it."
        )
    squared = wasserstein2(x0, x1) ** 2
    if squared == 0:
        raise ValueError("normalised_path_energy: x0 and x1 are the same samples, so there is nothing to compare with.")
    energy = mean_estimate(kinetic_energy)
    return Estimate(abs(energy.value - squared) / squared, energy.standard_error / squared)


def _velocity(name: str, trajectory: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Gives mean velocities ``[T-1, B, D]`` between the times, and how long each lasts."""
    if times.ndim != 1 or trajectory.ndim < 2 or len(times) != len(trajectory) or len(times) < 2:
        raise ValueError(
            f"{name}(trajectory of shape {list(trajectory.shape)}, times of shape {list(times.shape)}): one state is "
            f"needed per time, at two times or more; pass [T, B, *event] and [T]."
        )
    widths = times.diff()
    if not bool((widths > 0).all()):
        raise ValueError(f"{name}: times must increase strictly, from the base to the data; got {times.tolist()[:10]}.")
    steps = trajectory.diff(dim=0).flatten(2) if trajectory.ndim > 2 else trajectory.diff(dim=0)[..., None]
    return steps / widths[:, None, None], widths

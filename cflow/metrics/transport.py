"""How straight and how short the paths of a flow are."""

from __future__ import annotations

from torch import Tensor

from cflow.metrics.estimate import Estimate, mean_estimate
from cflow.metrics.wasserstein import wasserstein2
from cflow.shapes import rows

__all__ = ["normalised_path_energy", "path_energy", "straightness", "transport_cost"]


def path_energy(trajectory: Tensor, times: Tensor) -> Tensor:
    r"""Computes the kinetic energy of each path, which is assumed to be straight between the given times.

    .. math:: \int_0^1 \lVert v_t \rVert^2 \, dt \approx \sum_k \frac{\lVert x_{k+1} - x_k \rVert^2}{t_{k+1} - t_k}

    It converges to the integral from below with more times.

    Args:
        trajectory: ``[T, B, *event]``, states of B paths at T times.
        times: ``[T]``, increasing.

    Returns:
        Energies ``[B]``.

    Raises:
        ValueError: if the shapes do not agree, there are fewer than two times, or they do not increase.

    Example:
        >>> import torch
        >>> path_energy(torch.tensor([[[0.0]], [[1.0]], [[4.0]]]), torch.tensor([0.0, 0.5, 1.0]))
        tensor([20.])
    """
    velocity, widths = _velocity("path_energy", trajectory, times)
    return (velocity.square().sum(-1) * widths[:, None]).sum(0)


def straightness(trajectory: Tensor, times: Tensor) -> Estimate:
    r"""Measures the deviation of paths from straight lines at constant speed; zero for such lines.

    .. math:: \int_0^1 \mathbb E \bigl\lVert (x_1 - x_0) - \dot x_t \bigr\rVert^2 dt

    Velocities are differences between the given times, so use many times (100, for example): the path between two times
    counts as straight. Times are rescaled to span [0, 1]. The standard error is over the batch.

    Args:
        trajectory: ``[T, B, *event]``, states of B paths at T times.
        times: ``[T]``, increasing.

    Raises:
        ValueError: if the shapes do not agree, there are fewer than two times, or they do not increase.

    Source: Liu et al., Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow, 2022,
    arXiv:2209.03003, section 2.2.

    Example:
        >>> import torch
        >>> print(straightness(torch.tensor([[[0.0]], [[1.0]], [[4.0]]]), torch.tensor([0.0, 0.5, 1.0])).value)
        4.0
    """
    if len(times) > 1 and times[-1] > times[0]:
        times = (times - times[0]) / (times[-1] - times[0])
    velocity, widths = _velocity("straightness", trajectory, times)
    displacement = rows(trajectory[-1] - trajectory[0])
    return mean_estimate(((displacement - velocity).square().sum(-1) * widths[:, None]).sum(0))


def transport_cost(x0: Tensor, x1: Tensor, power: float = 2.0) -> Estimate:
    r"""Computes the mean distance between the ends of the paths of a flow (or the pairs of a coupling).

    .. math:: \mathbb E \, \lVert x_1 - x_0 \rVert^p

    A reflow does not increase it for any :math:`p \ge 1`. For p = 2 it is at least ``wasserstein2(x0, x1) ** 2``. The
    standard error is over the rows.

    Args:
        x0: ``[B, *event]``, starts of the paths.
        x1: ``[B, *event]``, ends of the same paths, in the same order.
        power: p, 1 or more.

    Raises:
        ValueError: if the shapes differ, there are no rows, or ``power`` is below one (a reflow may increase such
            costs).

    Source: Liu et al., Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow, 2022,
    arXiv:2209.03003, theorem 3.5.

    Example:
        >>> import torch
        >>> print(transport_cost(torch.zeros(4, 2), torch.ones(4, 2)))
        2 ± 0
    """
    if x0.shape != x1.shape or x0.ndim < 2 or len(x0) == 0:
        raise ValueError(
            f"transport_cost(x0 of shape {list(x0.shape)}, x1 of shape {list(x1.shape)}): rows must be the two ends of "
            f"one path; pass both as [B, *event], B of 1 or more."
        )
    if power < 1:
        raise ValueError(f"transport_cost(power={power}): the cost is not convex; pass 1 or more, such as 2.")
    return mean_estimate(rows((x1 - x0).detach()).double().norm(dim=1) ** power)


def normalised_path_energy(kinetic_energy: Tensor, x0: Tensor, x1: Tensor) -> Estimate:
    r"""Measures the deviation of a flow from optimal transport; zero for the optimal flow.

    .. math:: \bigl\lvert \mathbb E \textstyle\int_0^1 \lVert v_t \rVert^2 dt - W_2^2(q_0, q_1) \bigr\rvert
        \,/\, W_2^2(q_0, q_1)

    The standard error is that of the mean energy; the distance counts as exact.

    Args:
        kinetic_energy: ``[B]``, from :func:`path_energy` or from a quadrature of the solver.
        x0: ``[N, D]``, samples of the base.
        x1: ``[M, D]``, samples of the data.

    Cost: that of :func:`wasserstein2`.

    Raises:
        ValueError: if ``kinetic_energy`` is not ``[B]``, or the two samples are equal.

    Source: Tong et al., Simulation-free Schrödinger Bridges via Score and Flow Matching, 2023, arXiv:2307.03672,
    section 5.1.
    """
    if kinetic_energy.ndim != 1:
        raise ValueError(
            f"normalised_path_energy(kinetic_energy of shape {list(kinetic_energy.shape)}): not one energy per path; "
            f"pass path_energy(trajectory, times), [B]."
        )
    squared = wasserstein2(x0, x1) ** 2
    if squared == 0:
        raise ValueError("normalised_path_energy: x0 and x1 are the same samples; pass samples of base and data.")
    energy = mean_estimate(kinetic_energy)
    return Estimate(abs(energy.value - squared) / squared, energy.standard_error / squared)


def _velocity(name: str, trajectory: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean velocities ``[T-1, B, D]`` between the times, and the lengths of these intervals."""
    if times.ndim != 1 or trajectory.ndim < 2 or len(times) != len(trajectory) or len(times) < 2:
        raise ValueError(
            f"{name}(trajectory of shape {list(trajectory.shape)}, times of shape {list(times.shape)}): not one state "
            f"per time; pass [T, B, *event] and [T], T of 2 or more."
        )
    widths = times.diff()
    if not bool((widths > 0).all()):
        raise ValueError(f"{name}(times={times.tolist()[:10]}): they do not increase strictly; pass sorted times.")
    steps = trajectory.diff(dim=0).flatten(2) if trajectory.ndim > 2 else trajectory.diff(dim=0)[..., None]
    return steps / widths[:, None, None], widths

"""The built-in simulators of ``posterior.py``, and the files of the benchmark that they come from.

After Lueckmann et al., Benchmarking Simulation-Based Inference, 2021, arXiv:2101.04653, appendix T. This module is not
a recipe.
"""

import math
from pathlib import Path

import numpy as np
import torch


class TwoMoons:
    """T.8: a noisy half circle whose place depends on the sum's size and the difference: two crescents to infer."""

    folder, names, bound, steps = "two_moons", ("theta 1", "theta 2"), 1.0, 3000

    @staticmethod
    def crescent(count, generator):
        angle = math.pi * (torch.rand(count, generator=generator) - 0.5)
        radius = 0.1 + 0.01 * torch.randn(count, generator=generator)
        return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)

    def simulate(self, theta, generator):
        total, difference = theta.sum(1), theta[:, 1] - theta[:, 0]
        return self.crescent(len(theta), generator) + torch.stack([-total.abs(), difference], 1) / math.sqrt(2)

    def posterior(self, x, count, generator):
        """Draws exactly: x is noise plus a shift of the turned parameters, so the noise says what these were.

        |sum| and difference over the root of two are the noise less x and x less the noise, without a Jacobian; the
        sum's sign is free, and what falls outside the prior is drawn anew.
        """
        found, total = [], 0
        while total < count:
            noise = self.crescent(4 * count, generator)
            size, turned = noise[:, 0] - x[0], x[1] - noise[:, 1]
            turned_sum = torch.where(torch.rand(len(size), generator=generator) < 0.5, size, -size)
            theta = torch.stack([turned_sum - turned, turned_sum + turned], 1) / math.sqrt(2)
            found.append(theta[(size >= 0) & (theta.abs() <= self.bound).all(1)])
            total += len(found[-1])
        return torch.cat(found)[:count]


class SLCP:
    """T.3, simple likelihood, complex posterior: four points of a normal in the plane whose mean and covariance are
    functions of five parameters, two of which lose their sign: four modes."""

    folder, names, bound, steps = "slcp", tuple(f"theta {i}" for i in range(1, 6)), 3.0, 1500
    posterior = None  # no exact draws

    def simulate(self, theta, generator):
        first, second = theta[:, 2].square(), theta[:, 3].square()
        correlation = theta[:, 4].tanh()
        z = torch.randn(len(theta), 4, 2, generator=generator)
        across = first[:, None] * z[..., 0]
        up = second[:, None] * (correlation[:, None] * z[..., 0] + (1 - correlation**2).sqrt()[:, None] * z[..., 1])
        return (theta[:, None, :2] + torch.stack([across, up], 2)).flatten(1)


TASKS = {"two-moons": TwoMoons(), "slcp": SLCP()}


def prior(task, count, generator):
    return task.bound * (2 * torch.rand(count, len(task.names), generator=generator) - 1)


def box(task) -> torch.Tensor:
    """Returns the bounds of the prior, ``[2, D]``."""
    return torch.tensor([[-task.bound], [task.bound]]).repeat(1, len(task.names))


def read(file: Path) -> torch.Tensor:
    """Reads a table of numbers under a line of names, packed or not."""
    try:
        return torch.tensor(np.loadtxt(file, delimiter=",", skiprows=1), dtype=torch.float32)
    except FileNotFoundError:
        raise
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{file}: no table of the benchmark ({error}); get the tasks of sbibm again.") from error

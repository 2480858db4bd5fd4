"""Your own simulations for ``posterior.py``: parameters, data, and the observations to infer from.

This module is not a recipe. It reads files, checks them, and reports what is wrong with them.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from common import digits_of

from cflow import bijections, data
from cflow.cli import counted
from cflow.density import dequantise, lattice_steps

THETA = ("theta", "thetas", "parameters", "params")
X = ("x", "xs", "data", "simulations", "outputs")
THETA_NAMES = ("names", "theta_names", "parameter_names", "param_names")
X_NAMES = ("x_names", "data_names")
OBSERVED = ("x", "x_o", "observation", "observations", "observed", "data")
FEWEST = 100
MOST = 5000  # simulations on each side of the comparison with an observation


@dataclass
class Simulations:
    """Pairs of parameters and simulated data, in float64, in random order."""

    theta: torch.Tensor  # [N, D]; columns of whole numbers are spread over their steps by noise
    x: torch.Tensor  # [N, E]
    names: tuple[str, ...]  # of the parameters
    x_names: tuple[str, ...]
    shape: tuple[int, ...]  # of the data of one simulation, before they were flattened
    digits: list[int]  # significant digits that show six of each parameter's spread
    bounds: torch.Tensor | None = None  # [2, D], lowest and highest values of the prior
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)  # of whole-number parameters: a value, a step
    notes: list[str] = field(default_factory=list)


def read(file: Path, bounds: tuple[float, ...], drop_missing: bool, seed: int) -> Simulations:
    """Reads a .npz file with an array of parameters and an array of data, one row per simulation."""
    if file.suffix.lower() != ".npz":
        raise ValueError(
            f"--data {file}: simulations are read from a .npz file; write one by numpy.savez('sims.npz', theta=theta, "
            f"x=x), with one row per simulation in both."
        )
    if not file.is_file():
        raise FileNotFoundError(f"--data {file}: there is no such file.")
    theta, x = (_numbers(file, _one_of(file, keys, what)) for keys, what in ((THETA, "parameters"), (X, "data")))
    if len(theta) != len(x):
        raise ValueError(
            f"--data {file}: there are {len(theta)} rows of parameters and {len(x)} of data; both have one row per "
            f"simulation, in the same order."
        )
    shape, theta, x = tuple(x.shape[1:]), theta.reshape(len(theta), -1), x.reshape(len(x), -1)
    notes = []
    if len(shape) > 1:
        notes.append(f"data of shape {list(shape)} are flattened to {x.shape[1]} numbers")
    if x.shape[1] > 500:
        notes.append(f"{x.shape[1]} numbers of data per simulation are many; summary statistics may need fewer runs")
    good = theta.isfinite().all(1) & x.isfinite().all(1)
    if failed := int((~good).sum()):
        rows = (~good).nonzero().flatten().tolist()
        if not drop_missing:
            raise ValueError(
                f"--data {file}: {failed} of {len(good)} simulations hold NaN or infinity (rows "
                f"{', '.join(map(str, rows[:8]))}{', ...' if failed > 8 else ''}); pass --drop-missing to omit them."
            )
        notes.append(
            f"dropped {counted(failed, 'simulation')} of {len(good)} with NaN or infinity: the prior is now that of "
            f"parameters whose simulation succeeds"
        )
        theta, x = theta[good], x[good]
    if len(theta) < FEWEST:
        raise ValueError(f"--data {file}: {counted(len(theta), 'simulation')}; {FEWEST} or more are needed.")
    names = _names(file, THETA_NAMES, "theta", theta.shape[1])
    if fixed := [name for name, column in zip(names, theta.T) if column.min() == column.max()]:
        raise ValueError(f"--data {file}: {', '.join(fixed)} has one value in all simulations; omit the column.")
    if same := int((x.min(0).values == x.max(0).values).sum()):
        notes.append(f"{same} of {x.shape[1]} numbers of the data are the same in all simulations")
    box = _box(bounds, theta, names)
    steps = torch.from_numpy(lattice_steps(theta.numpy()))
    spread = {name: (float(theta[0, i]), float(steps[i])) for i, name in enumerate(names) if steps[i]}
    if spread:
        notes.append(f"whole numbers, or few different values, are spread over their steps: {', '.join(spread)}")
        theta = torch.from_numpy(dequantise(theta.numpy(), steps=steps.numpy(), random_state=seed))
        box = None if box is None else box + torch.stack([-steps, steps]) / 2
    order = torch.randperm(len(theta), generator=torch.Generator().manual_seed(seed))
    theta, x = theta[order], x[order]
    x_names = _names(file, X_NAMES, "x", x.shape[1])
    return Simulations(theta, x, names, x_names, shape, digits_of(theta), box, spread, notes)


def observations(words: tuple[str, ...], simulations: Simulations) -> torch.Tensor:
    """Reads one observation or several, ``[M, E]``: numbers of the command line, or a file."""
    shown = " ".join(words)
    width, shape = simulations.x.shape[1], simulations.shape
    try:
        found = torch.tensor([float(word) for word in words], dtype=torch.float64)
    except ValueError:
        if len(words) > 1:
            raise ValueError(f"--observation {shown}: pass numbers alone, or the name of one file.") from None
        found = _observed(Path(words[0]), simulations.x_names)
    if found.shape == shape or found.numel() == width:
        found = found.reshape(1, width)
    elif found.shape[1:] == shape or found.shape[1:] == (width,):
        found = found.reshape(-1, width)
    else:
        size = " x ".join(map(str, found.shape))
        raise ValueError(
            f"--observation {shown}: these are {size} numbers, and the data of one simulation are {width}; pass as "
            f"many, or a table with {width} columns and one row per observation."
        )
    if not found.isfinite().all():
        rows = (~found.isfinite().all(1)).nonzero().flatten().tolist()
        raise ValueError(f"--observation {shown}: NaN or infinity in row {', '.join(map(str, rows[:8]))}; correct it.")
    return found


def units_of(x: torch.Tensor) -> bijections.Standardise:
    """Fits the units of the data; numbers that are the same in all simulations stay as they are."""
    varies = x.min(0).values < x.max(0).values
    if varies.all():
        return bijections.Standardise.fit(x)
    loc, scale = x[0].clone(), torch.ones_like(x[0])
    fitted = bijections.Standardise.fit(x[:, varies])
    loc[varies], scale[varies] = fitted.loc, fitted.scale
    return bijections.Standardise(x.shape[1], loc=loc, scale=scale)


def p_values(observed: torch.Tensor, simulations: Simulations) -> list[float] | None:
    """Tests whether the numbers of each observation, taken together, are as those of a simulation.

    Half of the simulations are references: they also make the numbers uncorrelated, each of variance 1. The score is
    the distance to the fifth nearest reference, and p the rank of an observation's score among those of the other half.
    This is exact for any number of simulations: the smallest value is one in their number.

    Args:
        observed: the observations, ``[M, E]``.
        simulations: what they are compared with. None is returned for fewer than five references per number.
    """
    x = simulations.x
    half = min(len(x) // 2, MOST)
    others, references = x[:half], x[half:][:MOST]
    if 5 * x.shape[1] > len(references):
        return None
    units = units_of(references)
    unit = lambda each: units.encode(each)[0]
    values, vectors = torch.linalg.eigh(torch.cov(unit(references).T).reshape(x.shape[1], -1))
    # Directions in which simulations hardly vary count, too: an observation must obey what all simulations obey.
    whitened = lambda each: unit(each) @ vectors / values.clamp_min(1e-10 * float(values.max())).sqrt()
    near = whitened(references)
    score = lambda each: torch.cdist(whitened(each), near).kthvalue(5, 1).values
    usual = score(others)
    return [(1 + int((usual >= each).sum())) / (1 + half) for each in score(observed)]


def unusual(x: torch.Tensor, simulations: Simulations) -> list[str]:
    """Lists the numbers of one observation that lie outside of all simulations: there a posterior is a guess."""
    low, high = simulations.x.min(0).values, simulations.x.max(0).values
    outside = ((x < low) | (x > high)).nonzero().flatten().tolist()
    return [f"{simulations.x_names[i]} = {x[i]:.6g} (simulated: {low[i]:.6g} to {high[i]:.6g})" for i in outside]


def compared(observed: torch.Tensor, simulations: Simulations, p: list[float] | None) -> list[str]:
    """Writes how observations compare with the simulations, and warns of those that are unlike all of them."""
    lines, count = [], min(len(simulations.x) // 2, MOST)
    if p is None:
        lines.append(
            f"  not checked: whether the {observed.shape[1]} numbers of an observation fit together; they are too many "
            f"for {len(simulations.x)} simulations, so use summary statistics"
        )
    else:
        shown = ", ".join(f"{each:.3g}" for each in p[:3])
        more = f" and {len(p) - 3} more in metrics.json" if len(p) > 3 else ""
        lines.append(f"  like the simulations? p = {shown}{more} (below 0.01: no)")
    for k, x in enumerate(observed, 1):
        found = unusual(x, simulations)
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        if not found and p is not None and p[k - 1] < max(0.01, 1.5 / (1 + count)):
            found = [f"its numbers together are farther from the simulations than these are from each other (p = "
                     f"{p[k - 1]:.3g})"]  # fmt: skip
        if found:
            lines.append(f"  warning: observation {k} is unlike all simulations, so its posterior is not to be "
                         f"trusted: {', '.join(found[:3])}{more}")  # fmt: skip
    return lines


def _observed(file: Path, names: tuple[str, ...]) -> torch.Tensor:
    """Reads the numbers of a file of observations."""
    if not file.is_file():
        raise FileNotFoundError(f"--observation {file}: there is no such file, and it is not a number.")
    if file.suffix.lower() in (".csv", ".tsv"):
        table = data.TableFile(file)
        table = table.choose(names) if table.names is not None and set(names) <= set(table.names) else table
        return table.read().values
    if file.suffix.lower() == ".npz":
        return _numbers(file, _one_of(file, OBSERVED, "the observation"))
    if file.suffix.lower() == ".npy":
        return data.read_array(file).double()
    try:
        return torch.from_numpy(np.loadtxt(file))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--observation {file}: not read as numbers with spaces between ({str(error)[:60]}); write .npy, .npz, "
            f".csv, or such a text."
        ) from None


def _arrays(file: Path) -> list[str]:
    try:
        with np.load(file) as opened:
            return opened.files
    except (ValueError, OSError, AttributeError, EOFError):
        raise ValueError(f"{file}: not a file that numpy.savez wrote; write it again.") from None


def _one_of(file: Path, keys: tuple[str, ...], what: str) -> str:
    """Finds the first of these names among the arrays of a file."""
    there = _arrays(file)
    if len(there) == 1 and keys == OBSERVED:
        return there[0]
    if found := [key for key in keys if key in there]:
        return found[0]
    raise ValueError(
        f"{file}: it has the arrays {', '.join(there) or 'none'}, and {what} are looked for as {', '.join(keys)}; "
        f"rename one."
    )


def _numbers(file: Path, key: str) -> torch.Tensor:
    values = data.read_array(file, key)
    if values.dim() == 0 or not values.numel() or values.is_complex():
        raise ValueError(
            f"{file}: the array {key} is {values.dtype} of shape {list(values.shape)}; save real numbers, with one row "
            f"per simulation."
        )
    return values.double()


def _names(file: Path, keys: tuple[str, ...], letter: str, count: int) -> tuple[str, ...]:
    """Reads names where the file has as many, or numbers the columns from 1."""
    usual = (letter,) if count == 1 else tuple(f"{letter} {i + 1}" for i in range(count))
    key = next((key for key in keys if key in _arrays(file)), None)
    if key is None:
        return usual
    with np.load(file) as opened:
        try:
            names = tuple(str(each) for each in np.atleast_1d(opened[key]).tolist())
        except ValueError:
            raise ValueError(f"{file}: {key} is pickled; save numpy.array([...]) of texts.") from None
    if len(set(names)) != count:
        raise ValueError(
            f"{file}: {key} has {len(set(names))} different names for {count} columns; write one for each."
        )
    return names


def _box(bounds: tuple[float, ...], theta: torch.Tensor, names: tuple[str, ...]) -> torch.Tensor | None:
    """Returns the bounds of the prior, ``[2, D]``, and checks that all parameters lie within them."""
    if not bounds:
        return None
    shown, count = " ".join(f"{each:g}" for each in bounds), len(names)
    if len(bounds) not in (2, 2 * count):
        raise ValueError(
            f"--bounds {shown}: pass two numbers for all of {counted(count, 'parameter')}, or two for each, in order."
        )
    box = torch.tensor(bounds, dtype=torch.float64).reshape(-1, 2).expand(count, 2).T.contiguous()
    if not (box.isfinite().all() and (box[0] < box[1]).all()):
        raise ValueError(f"--bounds {shown}: each pair is a lower and a higher number; pass such pairs.")
    for i, name in enumerate(names):
        outside = ((theta[:, i] < box[0, i]) | (theta[:, i] > box[1, i])).nonzero().flatten()
        if len(outside):
            raise ValueError(
                f"--bounds {shown}: {name} lies outside in {counted(len(outside), 'simulation')} (one value: "
                f"{theta[outside[0], i]:.6g}); pass the bounds of the prior, or omit --bounds."
            )
    return box

"""Places on the earth for ``earth.py``: read from a table, checked, counted and split.

This module is not a recipe.
"""

import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cflow import data
from cflow.cli import counted

WORDS = ("airports",)  # data that come with packages of the extra [earth]
USES = {"train": "train", "validation": "decide when to stop", "test": "report"}
NAMES = (("latitude", "lat"), ("longitude", "long", "lon", "lng"))  # of columns, in small letters


@dataclass
class Places:
    """Latitude and longitude in degrees, split into three parts.

    Attributes:
        name: a short name of the data.
        source: the file, or a word for data of a package.
        columns: names of the columns.
        x: the parts ``train``, ``validation`` and ``test``, float64 ``[N, 2]``.
        repeated: how many rows repeat an earlier one.
        seen: how many rows of the test part are also in the training part.
        notes: what was read and dropped.
    """

    name: str
    source: Path | str
    columns: list[str]
    x: dict[str, torch.Tensor]
    repeated: int
    seen: int
    notes: list[str] = field(default_factory=list)


def read(name: str, columns: tuple[str, ...], drop_missing: bool, distinct: bool, seed: int) -> Places:
    """Reads places and splits them at random: 80 % to train, 10 % to decide when to stop, 10 % to report.

    Args:
        name: a .csv, .tsv, .npy or .npz file, or one of ``WORDS``.
        columns: the columns of latitude and longitude. Default: those with such names, or the only two.
        drop_missing: whether to omit rows with a missing value.
        distinct: whether each place is used once.
        seed: the seed of the split.

    Raises:
        ValueError: if the columns are not found, values are not places, or there are too few.
    """
    file = packaged("airportsdata", "airports.csv") if name == "airports" else Path(name)
    table = data.TableFile(file)
    table = table.choose(columns or named(table, name)).read(drop_missing=drop_missing)
    values = checked(table.values, name)
    notes = [f"dropped {counted(table.dropped, 'row')} with missing values"] if table.dropped else []
    pole = values[:, 0].abs() > 90 - 1e-9
    if pole.any():  # where longitude has no meaning
        values = values[~pole]
        notes.append(f"omitted {counted(int(pole.sum()), 'row')} at a pole, where a longitude has no meaning")
    unique = values.unique(dim=0)
    repeated = len(values) - len(unique)
    if repeated:
        kept = "each place is used once" if distinct else "--distinct uses each place once"
        notes.append(f"{counted(repeated, 'row')} of {len(values)} repeat{'s' * (repeated == 1)} another; {kept}")
    if distinct:
        values = unique
    if len(values) < 100:
        raise ValueError(f"--data {name}: {counted(len(values), 'place')}; a density takes 100 or more.")
    parts = split(values, seed)
    short = name if name in WORDS else file.stem
    names = list(table.names or ("latitude", "longitude"))
    seen = shared(parts)
    if seen:
        share = seen / len(parts["test"])
        notes.append(f"{share:.1%} of the test rows ({seen}) are also in the training part: their density is too high")
    return Places(short, name if name in WORDS else file, names, parts, repeated, seen, notes)


def packaged(package: str, ending: str) -> Path:
    """Returns a data file of an installed package, without importing it.

    Raises:
        ValueError: if the package is not installed.
    """
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"--data: the package {package} is not installed; run pip install 'cflow[earth]', or pass --data FILE.csv."
        ) from None
    return Path(next(each for each in files if each.name == ending).locate())


def named(table: data.TableFile, name: str) -> list[int]:
    """Finds the columns of latitude and longitude by their names; a table of two columns needs none."""
    found = []
    for words in NAMES:
        there = [i for i, each in zip(table.columns, table.names or ()) if each.strip().lower() in words]
        found += there[:1]
    if len(found) == 2:
        return found
    if len(table.columns) == 2 and table.names is None:
        return table.columns
    there = "without names" if table.names is None else ", ".join(table.names[:8])
    raise ValueError(
        f"--data {name}: no columns latitude and longitude ({len(table.columns)} columns: {there}); pass --columns "
        f"LATITUDE LONGITUDE."
    )


def checked(values: torch.Tensor, name: str) -> torch.Tensor:
    """Returns places with longitudes in [-180, 180); raises for values that are not degrees."""
    bad = (values[:, 0].abs() > 90) | (values[:, 1].abs() > 360)
    if bad.any():
        raise ValueError(
            f"--data {name}: {int(bad.sum())} of {len(values)} rows have a latitude beyond 90 degrees or a longitude "
            f"beyond 360; pass --columns in the order latitude, longitude."
        )
    return torch.stack([values[:, 0], torch.remainder(values[:, 1] + 180, 360) - 180], 1)


def split(values: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """Splits rows at random: 80, 10 and 10 %."""
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    tenth = len(values) // 10
    parts = order.split([len(values) - 2 * tenth, tenth, tenth])
    return {part: values[rows] for part, rows in zip(("train", "validation", "test"), parts)}


def shared(parts: dict[str, torch.Tensor]) -> int:
    """Counts the rows of the test part that are also in the training part."""
    known = set(map(tuple, parts["train"].tolist()))
    return sum(tuple(each) in known for each in parts["test"].tolist())

"""The command line: draw from a trained flow, score data by it, fit a solver of few steps to it, straighten it,
export it, and look at what a run holds.

cflow sample runs/images-digits --num 64 --solver heun --steps 8 --label 3 --output x.png
cflow bespoke runs/images-digits --steps 6
cflow sample runs/images-digits --num 64 --solver bespoke
cflow reflow runs/images-digits --rounds 1 --pairs 10000 --distill 1
cflow score runs/density-wine wine.csv --output scores.csv
cflow export runs/images-digits --steps 8 --output digits.pt2
cflow info runs/images-digits

Each command is a file; what they share about a run's folder is in ``runs.py``.
"""

from __future__ import annotations

import sys

from cflow.cli import bespoke, export, info, reflow, sample, score
from cflow.cli.commands import app

__all__ = ["main"]

COMMANDS = (sample, score, bespoke, reflow, export, info)  # importing one adds it to the app


def main(args: list[str] | None = None) -> None:
    """Runs the command line; mistakes of the user end in one line and exit status 2."""
    try:
        app.cli(prog="cflow", args=args)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"cflow: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None

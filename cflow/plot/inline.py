"""Figures that a notebook shows. A module of its own, since it imports matplotlib, which the first picture needs."""

from __future__ import annotations

import io

from matplotlib import figure

__all__ = ["Figure"]

DPI = 100  # in a notebook; files have more


class Figure(figure.Figure):
    """A figure outside pyplot that shows itself in a notebook, whichever backend is chosen there."""

    def _repr_png_(self) -> bytes:
        """Returns the picture in the format that IPython asks for."""
        shown = io.BytesIO()
        self.savefig(shown, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.05)
        return shown.getvalue()

"""Figures that a notebook shows. This module imports matplotlib, so it is imported with the first picture."""

from __future__ import annotations

import io

from matplotlib import figure

__all__ = ["Figure"]

DPI = 100  # in a notebook; files have more


class Figure(figure.Figure):
    """A figure without pyplot that a notebook shows with any backend."""

    def _repr_png_(self) -> bytes:
        """Returns the picture as PNG, for IPython."""
        shown = io.BytesIO()
        self.savefig(shown, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.05)
        return shown.getvalue()

"""Figures that a notebook shows. This module imports matplotlib, so it is imported with the first picture."""

from __future__ import annotations

import io

from matplotlib import figure, font_manager
from matplotlib.text import Text

__all__ = ["Figure"]

DPI = 100  # in a notebook; files have more
# For letters that matplotlib's own font lacks, such as Japanese names of columns; those that are installed are used.
FALLBACKS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Hiragino Sans", "Yu Gothic", "IPAexGothic",
    "PingFang SC", "Microsoft YaHei", "WenQuanYi Micro Hei", "Apple SD Gothic Neo", "Malgun Gothic", "NanumGothic",
    "Noto Sans Devanagari", "Nirmala UI", "Noto Sans", "Arial Unicode MS",
)  # fmt: skip


class Figure(figure.Figure):
    """A figure without pyplot that a notebook shows with any backend, with fonts for the letters of most languages."""

    def draw(self, renderer) -> None:
        """Draws the figure; letters that a font lacks are taken from another font that is installed."""
        texts = [each for each in self.findobj(Text) if not each.get_text().replace("\N{MINUS SIGN}", "-").isascii()]
        if texts:
            there = set(font_manager.get_font_names())  # matplotlib warns of families that are not
            for text in texts:
                families = text.get_fontfamily()
                more = [each for each in FALLBACKS if each in there and each not in families]
                text.set_fontfamily([*families, *more])
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        """Returns the picture as PNG, for IPython."""
        shown = io.BytesIO()
        self.savefig(shown, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.05)
        return shown.getvalue()

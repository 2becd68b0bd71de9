"""A small copy of the charts' font: cutting the letters of a PDF out of the whole one takes most of its time."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

from fontTools import subset  # type: ignore[import-untyped]
from matplotlib.font_manager import findfont, fontManager

WHOLE = "DejaVu Sans"
"""The font that comes with matplotlib; letters that the small copy lacks are taken from it."""
_NAME = "DejaVu Sans of the charts"
_LETTERS = (range(0x20, 0x250), range(0x370, 0x400), range(0x2010, 0x2040), range(0x2190, 0x22FF))
_LAYOUT = ("FFTM", "GDEF", "GPOS", "GSUB")
_FAMILY = (1, 16)
"""Numbers of the names of a font that hold its family."""


@lru_cache(maxsize=1)
def families() -> list[str]:
    """Names to draw with, the small copy's first; it is made once and removed with the process."""
    path = Path(_folder().name) / "face.ttf"
    options = subset.Options(
        drop_tables=[*subset.Options().drop_tables, *_LAYOUT],
        glyph_names=True,
        hinting=True,
        layout_closure=False,
        name_IDs=["*"],
        notdef_outline=True,
        recalc_timestamp=False,
    )
    font = subset.load_font(findfont(WHOLE), options)
    cut = subset.Subsetter(options)
    cut.populate(unicodes=[code for letters in _LETTERS for code in letters])
    cut.subset(font)
    for told in font["name"].names:
        if told.nameID in _FAMILY:
            told.string = _NAME
    subset.save_font(font, path, options)
    fontManager.addfont(path)
    return [_NAME, WHOLE]


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mtlbench-", ignore_cleanup_errors=True)

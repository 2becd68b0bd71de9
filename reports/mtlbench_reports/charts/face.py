"""A subset of the charts' font, because subsetting the full font for every PDF takes most of the rendering time."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

from fontTools import subset  # type: ignore[import-untyped]
from matplotlib.font_manager import findfont, fontManager

WHOLE = "DejaVu Sans"
"""The font that comes with matplotlib; characters that the subset lacks are taken from it."""
_NAME = "DejaVu Sans of the charts"
_LETTERS = (range(0x20, 0x250), range(0x370, 0x400), range(0x2010, 0x2040), range(0x2190, 0x22FF))
_LAYOUT = ("FFTM", "GDEF", "GPOS", "GSUB")
_FAMILY = (1, 16)
"""Name ids of a font that hold its family."""


@lru_cache(maxsize=1)
def families() -> list[str]:
    """Font families for drawing, the subset first; it is made once per process and removed at its end."""
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
    for record in font["name"].names:
        if record.nameID in _FAMILY:
            record.string = _NAME
    subset.save_font(font, path, options)
    fontManager.addfont(path)
    return [_NAME, WHOLE]


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mtlbench-", ignore_cleanup_errors=True)

"""Copying of files without following links out of their folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from mtlbench.errors import DataError


def copy_inside(path: Path, to: Path, *, root: Path) -> None:
    """Copy a file that resolves to a path under ``root``.

    Raises:
        DataError: it is a link to somewhere else.
    """
    real = path.resolve()
    if not real.is_relative_to(root.resolve()):
        raise DataError(
            f"{str(path)!r} is a link that leads out of {str(root)!r}, to {str(real)!r}. Replace it by the file, or "
            "copy the folder with its links resolved (cp -rL)."
        )
    shutil.copyfile(real, to)

"""Copying that does not follow a link out of its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from mtlbench.errors import DataError


def copy_inside(path: Path, to: Path, *, root: Path) -> None:
    """Copy a file whose content lies under ``root``.

    Raises:
        DataError: it is a link that leads elsewhere.
    """
    real = path.resolve()
    if not real.is_relative_to(root.resolve()):
        raise DataError(
            f"{str(path)!r} is a link that leads out of {str(root)!r}, to {str(real)!r}. Put the file itself there, or "
            "copy the folder with its links resolved (cp -rL)."
        )
    shutil.copyfile(real, to)

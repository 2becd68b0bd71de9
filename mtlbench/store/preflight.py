"""Everything a run needs of its folder, tried before anything is computed."""

from __future__ import annotations

from pathlib import Path

from mtlbench.errors import RequestError
from mtlbench.store.disk import DiskError
from mtlbench.store.files import write_new
from mtlbench.store.temporary import sweep, temporary_path

FOLDERS = (
    "requests", "records", "published", "conflicts", "claims", "samples", "steps", "adapters", "logs", "quarantine",
)  # fmt: skip
IN_PLACE = ("steps", "adapters", "logs", "checkpoints")
"""Folders whose entries are written to where they are; into the others files come by renaming alone."""


def preflight(path: Path) -> None:
    """Make the run folder, try every part of it, and remove temporary files that dead processes left.

    Raises:
        RequestError: as :meth:`RunFolder.preflight`.
        DiskError: there is no room in it.
    """
    try:
        if path.exists() and not path.is_dir():
            raise RequestError(f"The run folder {str(path)!r} is a file. Name another folder with --out.")
        whole = path.resolve()
        if not whole.parent.is_dir() and Path.cwd().resolve() not in whole.parents:
            raise RequestError(
                f"The parent of the run folder {str(path)!r} does not exist. Make {str(path.parent)!r} first, "
                "or name another folder with --out."
            )
        for name in FOLDERS:
            (path / name).mkdir(parents=True, exist_ok=True)
        for name in FOLDERS:
            probe = temporary_path(path / name)
            write_new(probe, b"probe", durable=False)
            probe.unlink()
            sweep(path / name)
        _refuse_links(path)
    except DiskError:
        raise
    except OSError as error:
        raise RequestError(
            f"The run folder {str(path)!r} cannot be used: {error.strerror or error}. It must be writable and on a "
            "file system with hard links; name another one with --out."
        ) from error


def _refuse_links(path: Path) -> None:
    """A run folder from somebody else must not make us write elsewhere."""
    for name in IN_PLACE:
        for entry in (path / name).glob("*"):
            if entry.is_symlink():
                raise RequestError(
                    f"{str(entry)!r} is a symbolic link: a run would write to where it points. Remove it, or name "
                    "another folder with --out."
                )

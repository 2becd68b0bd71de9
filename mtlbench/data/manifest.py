"""What a bundle should hold: every file with its size and SHA-256, and the revisions they were taken from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from mtlbench.errors import DataError

NAME = "bundle.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of ``bundle.json``."""

    tasks: Sequence[str] = ()
    """Full names of the tasks whose data is there."""
    source: str = ""
    """Where the rows are from: ``hub``, ``folder`` or ``demo``."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Path inside the bundle, with slashes, to SHA-256."""
    bytes: Mapping[str, int] = field(default_factory=dict)
    """The same paths to sizes."""
    datasets: Mapping[str, str] = field(default_factory=dict)
    """Data set to the revision it was taken from, where it has one."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Folder under ``models`` to the revision, or empty where it was a folder."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Packages that made the bundle."""
    schema: int = SCHEMA


def measure(folder: Path) -> tuple[dict[str, str], dict[str, int]]:
    """SHA-256 and size of every file under ``folder`` by its path there, the manifest left out."""
    paths = [path for path in _files(folder) if path != NAME]
    return {path: _sha256(folder / path) for path in paths}, {path: (folder / path).stat().st_size for path in paths}


def write(folder: Path, manifest: Manifest) -> None:
    """Put the manifest into its bundle."""
    text = json.dumps(asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> Manifest:
    """The manifest of the bundle at ``folder``.

    Raises:
        DataError: there is none, or it is no manifest that this version reads.
    """
    path = folder / NAME
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["schema"] > SCHEMA:
            raise DataError(f"{str(path)!r} was written by a newer version. Upgrade mtlbench.")
        manifest = Manifest(**body)
        whole = all(isinstance(getattr(manifest, name), dict) for name in ("files", "bytes", "datasets", "models"))
    except OSError as error:
        raise DataError(
            f"{str(folder)!r} is no bundle: {NAME} cannot be read ({error.strerror}). Name the folder that "
            "`mtlbench bundle make` wrote."
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{str(path)!r} is damaged: {error}. Make the bundle again.") from error
    if not whole or set(manifest.files) != set(manifest.bytes):
        raise DataError(f"{str(path)!r} is damaged: its parts do not fit together. Make the bundle again.")
    return manifest


def problems(folder: Path) -> Iterator[str]:
    """One line for each file that is missing, changed, added or leads outside; none where the bundle is whole.

    Nothing is read through a link, and nothing outside ``folder``.

    Raises:
        DataError: the manifest cannot be read.
    """
    manifest = read(folder)
    there = set(_files(folder))
    for name in sorted(manifest.files):
        if not is_inside(name):
            yield f"outside: {name!r} is named by the manifest and leads out of the bundle"
        elif _linked(folder, name):
            yield f"link: {name} is a symbolic link or lies behind one"
        elif name not in there:
            yield f"missing: {name}"
        elif (size := (folder / name).stat().st_size) != manifest.bytes[name]:
            yield f"changed: {name} has {size} bytes instead of {manifest.bytes[name]}"
        elif (found := _sha256(folder / name)) != manifest.files[name]:
            yield f"changed: {name} has SHA-256 {found[:16]}… instead of {manifest.files[name][:16]}…"
    for name in sorted(there - set(manifest.files) - {NAME}):
        yield f"added: {name} is not in the manifest"


def is_inside(name: str) -> bool:
    """Whether a relative path with slashes stays where it starts, on every system."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name


def _files(folder: Path) -> Iterator[str]:
    """Files and links under ``folder``, by their path there; links are not followed."""
    for root, folders, files in os.walk(folder, followlinks=False):
        here = Path(root)
        for name in [*files, *(name for name in folders if (here / name).is_symlink())]:
            yield (here / name).relative_to(folder).as_posix()


def _linked(folder: Path, name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(folder.joinpath(*parts[:count]).is_symlink() for count in range(1, len(parts) + 1))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The manifest of a bundle: every file with size and SHA-256, and the revisions of data sets and models."""

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
    """Full names of the tasks whose data is included."""
    source: str = ""
    """Source of the data: ``hub``, ``folder`` or ``demo``."""
    files: Mapping[str, str] = field(default_factory=dict)
    """POSIX path in the bundle to SHA-256."""
    bytes: Mapping[str, int] = field(default_factory=dict)
    """POSIX path in the bundle to size in bytes."""
    datasets: Mapping[str, str] = field(default_factory=dict)
    """Data set to its revision, where known."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Folder under ``models`` to its revision; empty for a local folder."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages that made the bundle."""
    schema: int = SCHEMA


def measure(folder: Path) -> tuple[dict[str, str], dict[str, int]]:
    """SHA-256 and size of every file under ``folder`` except the manifest, by relative path."""
    paths = [path for path in _files(folder) if path != NAME]
    return {path: _sha256(folder / path) for path in paths}, {path: (folder / path).stat().st_size for path in paths}


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a bundle."""
    text = json.dumps(asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> Manifest:
    """The manifest of the bundle at ``folder``.

    Raises:
        DataError: it does not exist, is damaged or was written by a newer version.
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
        raise DataError(f"{str(path)!r} is damaged: its fields are inconsistent. Make the bundle again.")
    return manifest


def problems(folder: Path) -> Iterator[str]:
    """One line per file that is missing, changed, added or outside the bundle; none if the bundle is intact.

    Links are not followed, and nothing outside ``folder`` is read.

    Raises:
        DataError: the manifest cannot be read.
    """
    manifest = read(folder)
    present = set(_files(folder))
    for name in sorted(manifest.files):
        if not is_inside(name):
            yield f"outside: {name!r} is named by the manifest and leads out of the bundle"
        elif _linked(folder, name):
            yield f"link: {name} is a symbolic link or inside a linked folder"
        elif name not in present:
            yield f"missing: {name}"
        elif (size := (folder / name).stat().st_size) != manifest.bytes[name]:
            yield f"changed: {name} has {size} bytes instead of {manifest.bytes[name]}"
        elif (actual := _sha256(folder / name)) != manifest.files[name]:
            yield f"changed: {name} has SHA-256 {actual[:16]}… instead of {manifest.files[name][:16]}…"
    for name in sorted(present - set(manifest.files) - {NAME}):
        yield f"added: {name} is not in the manifest"


def is_inside(name: str) -> bool:
    """Whether a relative POSIX path stays inside its root, on every system."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name


def _files(folder: Path) -> Iterator[str]:
    """Files and links under ``folder`` by relative path; links are not followed."""
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

"""Collects the files of a backbone and its tokenizer, from the package, a folder or the hub."""

from __future__ import annotations

import shutil
from pathlib import Path

from mtlbench.backbones.names import ModelFiles, check_model, files_of, is_packaged
from mtlbench.errors import DataError, RequestError

PLAIN = (".json", ".model", ".txt", ".jinja", ".md")
"""Suffixes of files that a model needs besides weights; its Python code is not copied, as it is never run."""
WEIGHTS = (".safetensors", ".bin")
"""Suffixes of weights; the first one that exists is used."""


def collect_model(name: str, to: Path) -> tuple[str, str]:
    """Copy the model ``name`` into its own folder under ``to``; returns that folder's name and the revision.

    Raises:
        RequestError: there is no such model.
        DataError: it has no weights, a link leads out of it, or another model has the same name.
    """
    check_model(name)
    files = files_of(name)
    if files is not None:
        folder = root = files.folder
        target = name if is_packaged(name) else _folder_name(files)
        revision = ""
    else:
        folder = _from_hub(name)
        # A snapshot in the hub's cache consists of links to files outside of it.
        root, target, revision = folder.parent.parent, name, folder.name
    _copy(name, folder, to / target, root=root, gguf=files.gguf if files else None)
    return target, revision


def _folder_name(files: ModelFiles) -> str:
    """The name of a local folder, or of a GGUF file without its suffix."""
    return files.folder.resolve().name if files.gguf is None else Path(files.gguf).stem


def _copy(name: str, folder: Path, to: Path, *, root: Path, gguf: str | None) -> None:
    if to.exists():
        raise DataError(f"Two models have the folder name {to.name!r}. Make a bundle for each.")
    if gguf is not None:
        to.mkdir(parents=True)
        copy_inside(folder / gguf, to / gguf, root=root)
        return
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    weights = next((paths for end in WEIGHTS if (paths := [path for path in files if path.suffix == end])), [])
    if not weights:
        raise DataError(f"The model {name!r} has no weights ({' or '.join('*' + end for end in WEIGHTS)}).")
    to.mkdir(parents=True)
    for path in (*weights, *(path for path in files if path.suffix in PLAIN)):
        copy_inside(path, to / path.name, root=root)


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


def _from_hub(name: str) -> Path:
    """The newest snapshot of a hub model, downloaded if it is not cached."""
    from huggingface_hub import snapshot_download

    plain = [f"*{ending}" for ending in PLAIN]
    try:
        for ending in WEIGHTS:
            folder = Path(snapshot_download(name, allow_patterns=[*plain, f"*{ending}"], ignore_patterns=["*/*"]))
            if any(folder.glob(f"*{ending}")):
                break
    except Exception as error:
        raise RequestError(
            f"The model {name!r} cannot be fetched from the hub: {str(error).strip().splitlines()[0]} "
            "Make the bundle on a machine with a network, or name a model folder."
        ) from error
    return folder

"""Model names: embedded backbone, local folder or hub id, resolved without loading anything."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path

from mtlbench.api.cell import Cell
from mtlbench.backbones.checkpoint import check_checkpoint, check_folder_length, tokens_note
from mtlbench.data.cache import cached_sha256
from mtlbench.errors import RequestError, did_you_mean

BACKBONES = Path(__file__).parents[1] / "demo" / "backbones"
"""Folder of the embedded backbones, one subfolder each."""

_WHOLE = 64 * 2**20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?")


def embedded() -> tuple[str, ...]:
    """Names of the embedded backbones."""
    return tuple(sorted(p.parent.name for p in BACKBONES.glob("*/config.json")))


def is_embedded(model: str) -> bool:
    """Whether ``model`` names an embedded backbone."""
    return model in embedded()


def weights_digest(model: str) -> str:
    """Short digest of the files of an embedded or local backbone; empty for a hub id.

    Every byte counts. The digest of a file larger than 64 MiB is remembered in the cache folder until the file is
    written again, so that gigabytes are read once.
    """
    folder = BACKBONES / model if is_embedded(model) else Path(model)
    if not folder.is_dir():
        return ""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".safetensors", ".bin", ".json", ".model", ".txt"):
            continue
        size = path.stat().st_size
        total.update(f"{path.name} {size} ".encode())
        total.update(path.read_bytes() if size <= _WHOLE else cached_sha256(path).encode())
    return total.hexdigest()[:16]


def check_model(model: str) -> None:
    """Fail early when ``model`` is neither an embedded backbone, a model folder nor a possible hub id.

    Raises:
        RequestError: what is wrong and what to use instead.
    """
    if is_embedded(model):
        return
    path = Path(model)
    if model and path.is_dir():
        _check_folder(path)
        return
    if "/" not in model and difflib.get_close_matches(model.lower(), embedded(), n=1, cutoff=0.7):
        raise RequestError(f"There is no model {model!r}. {did_you_mean(model, embedded())}")
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_local or not _HUB_ID.fullmatch(model):
        raise RequestError(
            f"There is no model folder {model!r}. Name a folder with config.json, a hub id or {_names()}."
        )


def model_notes(model: str) -> tuple[str, ...]:
    """What the user should know of a model folder before the run."""
    local = not is_embedded(model) and Path(model).is_dir()
    note = tokens_note(Path(model)) if local else None
    return () if note is None else (note,)


def check_positions(model: str, *, max_length: int) -> None:
    """Fail early when rows of ``max_length`` tokens are longer than the positions of a model folder.

    Raises:
        RequestError: saying what the longest row may be.
    """
    if not is_embedded(model) and Path(model).is_dir():
        check_folder_length(Path(model), max_length=max_length)


def found_model(cell: Cell, places: Iterable[str]) -> str | None:
    """Where the backbone of a cell is now: the digest of its weights decides, not the path.

    Args:
        places: Folders where a local backbone may be, the most likely first.

    Returns ``None`` where no place holds the weights that the cell was planned with.
    """
    if not cell.weights:
        return cell.model
    for place in (cell.model, *(() if is_embedded(cell.model) else places)):
        with contextlib.suppress(OSError):
            if weights_digest(place) == cell.weights:
                return place
    return None


def check_reachable(model: str) -> None:
    """Check that a hub model is cached or reachable. Accesses the network only for hub ids that are not cached.

    Raises:
        RequestError: with alternatives that need no hub.
    """
    if is_embedded(model) or Path(model).is_dir():
        return
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return
    hint = f"Use a local folder, or {_names()}. {did_you_mean(model, embedded())}"
    try:
        HfApi().model_info(model, timeout=10)
    except GatedRepoError as error:
        raise RequestError(
            f"The hub gates model {model!r}: accept its terms and set HF_TOKEN, or use {_names()}."
        ) from error
    except RepositoryNotFoundError as error:
        raise RequestError(f"The hub knows no model {model!r}. {hint}") from error
    except Exception as error:
        raise RequestError(f"Model {model!r} is not on this machine and the hub cannot be reached. {hint}") from error


def _check_folder(path: Path) -> None:
    config = path / "config.json"
    if not config.is_file():
        raise RequestError(
            f"The model folder {str(path)!r} has no config.json. Name the folder that save_pretrained wrote."
        )
    try:
        body = json.loads(config.read_text())
    except ValueError as error:
        raise RequestError(f"{str(config)!r} is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise RequestError(f"{str(config)!r} holds no JSON object. Copy or download it again.")
    if "AutoConfig" in (body.get("auto_map") or {}) and not _known(body.get("model_type")):
        raise RequestError(remote_code(str(path)))
    check_checkpoint(path, body)


def remote_code(model: str) -> str:
    """The message for a model that needs its own Python code, which is refused."""
    return (
        f"The model {model!r} needs its own Python code (trust_remote_code), and mtlbench runs no code of a model. Use "
        "one whose architecture is part of transformers, or a version of this one that was converted to it."
    )


def _known(architecture: object) -> bool:
    """Whether transformers has a package for a ``model_type``, by its files, without importing it."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations or not isinstance(architecture, str):
        return False
    name = architecture.replace("-", "_").lower()
    return name.isidentifier() and (Path(spec.submodule_search_locations[0]) / "models" / name).is_dir()


def _names() -> str:
    return "an embedded backbone (" + ", ".join(embedded()) + ")"

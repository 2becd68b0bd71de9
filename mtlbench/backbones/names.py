"""Model names: packaged backbone, local folder or GGUF file, or hub id, resolved without loading anything."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlbench.api.backbone import PackagedBackbone
from mtlbench.api.cell import Cell
from mtlbench.backbones.checkpoint import check_checkpoint, check_folder_length, tokens_note
from mtlbench.backbones.generating import why_not_generating
from mtlbench.backbones.gguf import SUFFIX, check_gguf, gguf_in
from mtlbench.compat import lacks_sdpa
from mtlbench.data.cache import cached_sha256
from mtlbench.errors import PluginError, RequestError, did_you_mean
from mtlbench.plugins import load_packaged, offer_of, offers

BACKBONES = Path(__file__).parents[1] / "demo" / "backbones"
"""Folder of the embedded demo backbones, one subfolder each."""

_WHOLE = 64 * 2**20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?")


@dataclass(frozen=True)
class ModelFiles:
    """The files of a packaged or local backbone."""

    folder: Path
    gguf: str | None = None
    """Name of the GGUF file in the folder that holds configuration, tokenizer and weights alike."""

    @property
    def where(self) -> dict[str, str]:
        """What ``from_pretrained`` of models, configurations and tokenizers takes."""
        place = {"pretrained_model_name_or_path": str(self.folder)}
        return place if self.gguf is None else {**place, "gguf_file": self.gguf}


def packaged() -> tuple[str, ...]:
    """Names of the backbones that installed packages carry, read from metadata only."""
    return tuple(offers("backbones"))


def is_packaged(model: str) -> bool:
    """Whether ``model`` names a backbone of an installed package."""
    return model in packaged()


def is_embedded(model: str) -> bool:
    """Whether ``model`` names a packaged backbone that knows generated text only, such as ``demo``."""
    return is_packaged(model) and load_packaged(model).demo


def files_of(model: str) -> ModelFiles | None:
    """The files of a packaged or local backbone; ``None`` for a hub id.

    Raises:
        RequestError: the package with its files is not installed, or a folder has several GGUF files.
        PluginError: a package names files that are not there.
    """
    path = _packaged_path(load_packaged(model)) if is_packaged(model) else Path(model)
    if path.is_dir() and model:
        return ModelFiles(path, gguf_in(path))
    if path.suffix == SUFFIX and path.is_file():
        return ModelFiles(path.parent, path.name)
    return None


def _packaged_path(backbone: PackagedBackbone) -> Path:
    if backbone.path is None:
        how = f": {backbone.install}" if backbone.install else "."
        raise RequestError(f"The files of the backbone {backbone.name!r} are not installed{how}")
    if not backbone.path.exists():
        offer = offer_of("backbones", backbone.name)
        raise PluginError(
            f"The backbone {backbone.name!r} of {offer.origin} lies in {str(backbone.path)!r}, which is not there. "
            f"Install {offer.distribution} again."
        )
    return backbone.path


def weights_digest(model: str) -> str:
    """Short digest of the files of a packaged or local backbone; empty for a hub id. Of GGUF it is the one file's.

    Every byte counts. The digest of a file larger than 64 MiB is remembered in the cache folder until the file is
    written again, so that gigabytes are read once.
    """
    files = files_of(model)
    if files is None:
        return ""
    total = hashlib.sha256()
    for path in sorted(files.folder.iterdir()) if files.gguf is None else [files.folder / files.gguf]:
        if files.gguf is None and path.suffix not in (".safetensors", ".bin", ".json", ".model", ".txt"):
            continue
        size = path.stat().st_size
        total.update(f"{path.name} {size} ".encode())
        total.update(path.read_bytes() if size <= _WHOLE else cached_sha256(path).encode())
    return total.hexdigest()[:16]


def check_model(model: str) -> None:
    """Fail early when ``model`` is neither a packaged backbone, local files nor a possible hub id.

    Raises:
        RequestError: what is wrong and what to use instead.
    """
    files = files_of(model)
    if files is not None:
        _check_files(files)
        return
    if model.endswith(SUFFIX):
        check_gguf(Path(model))
    if "/" not in model and difflib.get_close_matches(model.lower(), packaged(), n=1, cutoff=0.7):
        raise RequestError(f"There is no model {model!r}. {did_you_mean(model, packaged())}")
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_local or not _HUB_ID.fullmatch(model):
        raise RequestError(
            f"There is no model folder {model!r}. Name a folder with config.json, a GGUF file, a hub id or {_names()}."
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
    if files_of(model) is not None:
        return
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return
    hint = f"Use a local folder, or {_names()}. {did_you_mean(model, packaged())}"
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


def _check_files(files: ModelFiles) -> None:
    if files.gguf is not None:
        check_gguf(files.folder / files.gguf)
        return
    path = files.folder
    config = path / "config.json"
    if not config.is_file():
        raise RequestError(
            f"The model folder {str(path)!r} has no config.json. Name the folder that save_pretrained wrote, or one "
            "with a GGUF file."
        )
    try:
        body = json.loads(config.read_text())
    except ValueError as error:
        raise RequestError(f"{str(config)!r} is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise RequestError(f"{str(config)!r} holds no JSON object. Copy or download it again.")
    if "AutoConfig" in (body.get("auto_map") or {}) and not _known(body.get("model_type")):
        raise RequestError(remote_code(str(path)))
    if (reason := why_not_generating(body)) is not None:
        raise RequestError(not_generating(str(path), reason))
    check_checkpoint(path, body)


def limits_of(model: str, *, attention: str) -> list[str]:
    """What the files of ``model`` tell that it does not allow, a sentence each; nothing for a hub id.

    Args:
        attention: That of the protocol.

    Raises:
        RequestError: ``sdpa`` was asked for, and there is none.
    """
    config, limits = config_of(model), list[str]()
    kind = str(config.get("model_type", ""))
    if attention != "eager" and lacks_sdpa(kind):
        if attention == "sdpa":
            raise RequestError(no_sdpa(kind))
        limits.append(
            f"{kind} has no sdpa attention in transformers: eager attention is used, which takes more memory."
        )
    experts = next((config[name] for name in _EXPERTS if isinstance(config.get(name), int)), 0)
    if experts > 1:
        limits.append(f"No method but full adapts the experts of {kind}, {experts} in a layer.")
    return limits


_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def no_sdpa(kind: str) -> str:
    """The message for a kernel that transformers does not have for a model type."""
    return f"{kind} has no sdpa attention in transformers. Take --attention auto or eager."


def not_generating(model: str, reason: str) -> str:
    """The message for a checkpoint that generates no text."""
    return (
        f"The backbone {model!r} {reason}. Take one that generates text, such as a Llama, a GPT-2 or a T5, or `demo`."
    )


def config_of(model: str) -> dict[str, Any]:
    """The content of its config.json, where it is in a folder here."""
    files = files_of(model)
    if files is None or files.gguf is not None:
        return {}
    try:
        body = json.loads((files.folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


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
    return "a packaged backbone (" + ", ".join(packaged()) + ")"

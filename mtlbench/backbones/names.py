"""Model names: embedded backbone, local folder or hub id, resolved without loading anything."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from mtlbench.backbones.generating import why_not_generating
from mtlbench.compat import lacks_sdpa
from mtlbench.errors import RequestError, did_you_mean

BACKBONES = Path(__file__).parents[1] / "demo" / "backbones"
"""Folder of the embedded backbones, one subfolder each."""

_WHOLE, _EDGE = 64 * 2**20, 2**20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?")


def embedded() -> tuple[str, ...]:
    """Names of the embedded backbones."""
    return tuple(sorted(p.parent.name for p in BACKBONES.glob("*/config.json")))


def is_embedded(model: str) -> bool:
    """Whether ``model`` names an embedded backbone."""
    return model in embedded()


def weights_digest(model: str) -> str:
    """Short digest of the files of an embedded or local backbone; empty for a hub id.

    For a file larger than 64 MiB only its size, first and last MiB are read: enough to distinguish checkpoints without
    reading gigabytes.
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
        with path.open("rb") as file:
            if size <= _WHOLE:
                total.update(file.read())
                continue
            total.update(file.read(_EDGE))
            file.seek(-_EDGE, 2)
            total.update(file.read())
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
    if isinstance(body, dict) and "AutoConfig" in (body.get("auto_map") or {}) and not _known(body.get("model_type")):
        raise RequestError(remote_code(str(path)))
    if isinstance(body, dict) and (reason := why_not_generating(body)) is not None:
        raise RequestError(not_generating(str(path), reason))


def limits_of(model: str, *, attention: str) -> list[str]:
    """What the files of ``model`` tell that it does not allow, a sentence each; nothing for a hub id.

    Args:
        attention: That of the protocol.

    Raises:
        RequestError: ``sdpa`` was asked for, and there is none.
    """
    config, limits = _config(model), list[str]()
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


def _config(model: str) -> dict[str, Any]:
    """The content of its config.json, where it is in a folder here."""
    path = (BACKBONES / model if is_embedded(model) else Path(model)) / "config.json"
    try:
        body = json.loads(path.read_text())
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
    return "an embedded backbone (" + ", ".join(embedded()) + ")"

"""What the files of a model folder say before anything is loaded: weights, embeddings, positions, tokenizer.

Headers of safetensors files are plain JSON, so nothing heavy is imported and no weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from mtlbench.errors import RequestError
from mtlbench.text import one_line

Shapes = Mapping[str, Sequence[int]]
"""Name of a weight to its shape."""

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files that transformers looks for, in this order."""
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip
_DTYPES = {
    *("auto", "float64", "float32", "float16", "bfloat16", "double", "float", "half"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
}
_LARGEST_HEADER = 100 * 10**6
_EMBEDDINGS = (
    "embed_tokens", "wte", "shared", "word_embeddings", "embed_in", "tok_embeddings", "embeddings", "tokens_embed",
)  # fmt: skip
_POSITIONS = ("embed_positions", "wpe", "position_embeddings", "positions_embed")
_LIMITS = (
    "max_encoder_position_embeddings", "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len",
)  # fmt: skip
_COMPUTED = ("gptj", "codegen", "ctrl", "mpt")
"""Model types with a computed table of positions, which has an end and is not among the weights."""
_TOKENIZERS = ("tokenizer.json", "*.model", "*.spm", "vocab*", "merges.txt", "*.tiktoken", "tekken.json")
_WITHOUT_FILES = ("ByT5", "Canine", "Perceiver")
"""Tokenizers that read bytes or characters and have no file."""


def check_checkpoint(folder: Path, config: Mapping[str, Any]) -> None:
    """Check a model folder with this ``config.json``, as far as its files say it without loading.

    Raises:
        RequestError: it is an adapter, weights are missing, truncated or do not fit, or it has no tokenizer.
    """
    if any(folder.glob("*.gguf")):
        return
    if (folder / "adapter_config.json").is_file():
        raise RequestError(
            f"The model folder {str(folder)!r} also holds a peft adapter (adapter_config.json), which transformers "
            "would load with the backbone. Move the adapter away, or merge it (merge_and_unload) and save the result."
        )
    if not config.get("model_type"):
        raise RequestError(f"{str(folder / 'config.json')!r} names no model_type. Use the file save_pretrained wrote.")
    for name in ("dtype", "torch_dtype"):
        dtype = config.get(name)
        if isinstance(dtype, str) and dtype.removeprefix("torch.") not in _DTYPES:
            raise RequestError(
                f"{str(folder / 'config.json')!r} has {name} {one_line(dtype)!r}, no dtype of torch. Known: "
                f"{', '.join(sorted(_DTYPES))}."
            )
    shapes = weight_shapes(folder)
    _check_tokenizer_files(folder)
    rows = embedding_rows(shapes)
    if rows is None:
        return
    vocabulary = _of_text(config).get("vocab_size")
    if isinstance(vocabulary, int) and vocabulary not in rows and "quantization_config" not in config:
        name, count = next((name, shape[0]) for name, shape in shapes.items() if shape and shape[0] in rows)
        raise RequestError(
            f"The weights in {str(folder)!r} do not fit its config.json: vocab_size is {vocabulary:,}, and the "
            f"embedding {name} has {count:,} rows. Save the model and its config together with save_pretrained."
        )


def tokens_note(folder: Path) -> str | None:
    """:func:`tokens_beyond` from the files of a model folder that was checked before."""
    if any(folder.glob("*.gguf")):
        return None
    rows = embedding_rows(weight_shapes(folder))
    return None if rows is None else tokens_beyond(str(folder), _token_ids(folder), rows=max(rows))


def tokens_beyond(model: str, tokens: Mapping[int, str], *, rows: int) -> str | None:
    """What is wrong with a tokenizer that has tokens without a row in the embedding; ``None`` if it has none.

    Args:
        tokens: Ids that text can get, with their tokens; special ones that only mark images and the like are left out.
        rows: Rows of the embedding.
    """
    beyond = sorted(token for token in tokens if token >= rows)
    if not beyond:
        return None
    shown = ", ".join(f"{one_line(tokens[token])!r} ({token})" for token in beyond[:3])
    return (
        f"The tokenizer of {model!r} has {len(beyond)} tokens beyond the embedding of the model: ids up to "
        f"{beyond[-1]:,}, and the embedding has {rows:,} rows. The first: {shown}. Tokens were added without "
        "model.resize_token_embeddings(len(tokenizer)): call it, train the new rows and save both, or use the "
        "tokenizer that belongs to the weights."
    )


def check_length(model: str, config: Mapping[str, Any], shapes: Shapes, *, max_length: int) -> None:
    """Refuse rows longer than the positions of the backbone.

    Raises:
        RequestError: saying what the longest row may be.
    """
    positions = position_limit(config, shapes)
    if positions is not None and max_length > positions:
        raise RequestError(
            f"--max-length {max_length} is more than the {positions} positions of {model!r} "
            f"({config.get('model_type')}; max_position_embeddings in its config.json), which it cannot extend. "
            f"Use --max-length {positions} or less, or another backbone."
        )


def check_folder_length(folder: Path, *, max_length: int) -> None:
    """:func:`check_length` from the files of a model folder whose config was checked before."""
    if any(folder.glob("*.gguf")):
        return
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    check_length(str(folder), config, weight_shapes(folder), max_length=max_length)


def position_limit(config: Mapping[str, Any], shapes: Shapes) -> int | None:
    """Positions of a backbone that has a table of them; ``None`` for rotary, relative and endless ones.

    An encoder-decoder's prompt is read by the encoder, whose table counts.
    """
    tables = {name: shape for name, shape in shapes.items() if len(shape) == 2 and _module(name) in _POSITIONS}
    of_encoder = {name: shape for name, shape in tables.items() if ".encoder." in f".{name}"}
    rows = [int(shape[0]) for shape in (of_encoder or tables).values()]
    if not rows and config.get("model_type") not in _COMPUTED:
        return None
    stated = [int(config[name]) for name in _LIMITS if isinstance(config.get(name), int)]
    return min([*rows, *stated[:1]], default=None)


def embedding_rows(shapes: Shapes) -> set[int] | None:
    """Rows of the token embeddings; ``None`` where no weight is recognised as one."""
    rows = {
        int(shape[0])
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and _module(name) in _EMBEDDINGS
    }
    return rows or None


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight in safetensors files; empty for pickled weights, which only torch can read.

    Raises:
        RequestError: there are no weights, a file of the index is missing, or a file is truncated or no such file.
    """
    name = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if name is None:
        raise RequestError(_no_weights(folder))
    path = folder / name
    listed = _listed(path) if name.endswith(".index.json") else {}
    files = sorted(set(listed.values())) or [name]
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise RequestError(
            f"{str(path)!r} names {len(files)} files of weights, and {len(absent)} of them are missing: "
            f"{_some(absent)}. Copy or download them again."
        )
    for file in files:
        _refuse_pointer(folder / file)
    if not files[0].endswith(".safetensors"):
        return {}
    found = {file: _header(folder / file) for file in files}
    lacking = [weight for weight, file in listed.items() if weight not in found[file]]
    if lacking:
        raise RequestError(
            f"{str(path)!r} lists {len(lacking)} weights that its files do not hold: {_some(lacking)}. "
            "Copy or download the folder again."
        )
    return {weight: shape for header in found.values() for weight, shape in header.items()}


def _listed(path: Path) -> dict[str, str]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not listed or not all(isinstance(file, str) and Path(file).name == file for file in listed.values()):
            raise ValueError("its weight_map names no files of this folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{str(path)!r} is not an index of weights: {error}. Copy it again.") from error
    return {str(weight): str(file) for weight, file in listed.items()}


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of the weights of a safetensors file.

    Raises:
        RequestError: the file is not one, or not whole.
    """
    size, hint = path.stat().st_size, "Copy or download it again."
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                raise RequestError(
                    f"{str(path)!r} is no safetensors file, or truncated in its header ({size:,} bytes). {hint}"
                )
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        shapes, end = {}, 0
        for name, entry in entries.items():
            if entry["dtype"] not in _BITS:
                raise RequestError(
                    f"{str(path)!r} has the weight {one_line(name)!r} in the dtype {one_line(str(entry['dtype']))!r}, "
                    f"which safetensors does not know. Known: {', '.join(sorted(_BITS))}."
                )
            shapes[name] = tuple(int(length) for length in entry["shape"])
            first, last = entry["data_offsets"]
            if (last - first) * 8 != prod(shapes[name]) * _BITS[entry["dtype"]]:
                raise ValueError(f"the weight {name} has other bytes than its shape needs")
            end = max(end, last)
    except OSError as error:
        raise RequestError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{str(path)!r} is no safetensors file: {one_line(str(error))}. {hint}") from error
    if size != 8 + length + end:
        raise RequestError(
            f"{str(path)!r} is {'truncated' if size < 8 + length + end else 'longer than it should be'}: it has "
            f"{size:,} bytes, and its header describes {8 + length + end:,}. {hint}"
        )
    return shapes


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(32)
    if start.startswith(b"version https://git-lfs"):
        raise RequestError(
            f"{str(path)!r} is a pointer of Git LFS, not the weights. Fetch them with `git lfs pull` in its repository."
        )
    if not start:
        raise RequestError(f"{str(path)!r} is empty. Copy or download it again.")


def _no_weights(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    broken = [name for name in WEIGHTS if (folder / name).is_symlink()]
    if broken:
        return f"{str(folder / broken[0])!r} is a link to a file that is not there. Copy or download the weights again."
    others = [name for name in names if name.endswith((".h5", ".msgpack", ".safetensors", ".bin", ".pth", ".pt"))]
    there = f" Weights of another form are there: {_some(others)}." if others else ""
    return (
        f"The model folder {str(folder)!r} has no weights: none of {', '.join(WEIGHTS)}.{there} Name the folder that "
        "save_pretrained wrote."
    )


def _check_tokenizer_files(folder: Path) -> None:
    settings = folder / "tokenizer_config.json"
    if any(path.is_file() for pattern in _TOKENIZERS for path in folder.glob(pattern)):
        return
    named = settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else ""
    if not any(name in named for name in _WITHOUT_FILES):
        raise RequestError(
            f"The model folder {str(folder)!r} has no tokenizer: it needs tokenizer.json, or the vocabulary of its "
            "tokenizer (tokenizer.model, vocab.json with merges.txt, vocab.txt, spiece.model). Write it with "
            "tokenizer.save_pretrained, or copy these files from where the model came from."
        )


def _token_ids(folder: Path) -> dict[int, str]:
    """Ids that text can get, from ``tokenizer.json``; empty without one."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return {}
    try:
        body = json.loads(path.read_bytes())
        vocabulary = body["model"].get("vocab") or {}
        ids = (
            {token: text for text, token in vocabulary.items()}
            if isinstance(vocabulary, dict)
            else {token: str(entry[0]) for token, entry in enumerate(vocabulary)}
        )
        added = body.get("added_tokens") or []
        ids |= {entry["id"]: entry["content"] for entry in added if not entry.get("special")}
        special = {entry["id"] for entry in added if entry.get("special")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RequestError(
            f"{str(path)!r} is no tokenizer: {type(error).__name__}: {one_line(str(error))}. Copy or download it again."
        ) from error
    return {int(token): str(text) for token, text in ids.items() if token not in special}


def _module(name: str) -> str:
    """The module of a weight: ``wpe`` of ``transformer.wpe.weight``."""
    return name.removesuffix(".weight").rpartition(".")[2]


def _of_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(one_line, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

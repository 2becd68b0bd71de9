"""The linear projections of a backbone, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mtlbench.errors import RequestError
from mtlbench.nn.layer_rows import watch_rows

_HEADS = frozenset({"lm_head", "classifier", "score", "qa_outputs", "embed_out"})


def projection_names(model: nn.Module) -> tuple[str, ...]:
    """Qualified names of every linear of the attention and feed-forward blocks, in model order.

    Blocks are what a numbered list of modules holds; the output embeddings and other heads are left out, and the
    experts of a mixture, which see single tokens of a batch.
    """
    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head else None
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and name.rpartition(".")[2] not in _HEADS
        and any(part.isdigit() for part in name.split("."))
        and "experts" not in name.split(".")
    )


def shapes_of(model: nn.Module, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Output and input width of each named linear."""
    found: dict[str, tuple[int, int]] = {}
    for name in names:
        linear: Any = model.get_submodule(name)  # the weight of a quantised one has another shape
        found[name] = (linear.out_features, linear.in_features)
    return found


def select_linears(names: Sequence[str], target: str) -> tuple[str, ...]:
    """The names that ``target`` asks for.

    ``target`` is ``all``, ``attention`` (every projection of an attention block), ``ffn`` (all others), or last parts
    of names joined by ``+``, such as ``q_proj+v_proj``.

    Raises:
        RequestError: when nothing has such a name.
    """
    if not names:
        raise RequestError(
            "This backbone has no linear projections that a method could adapt. Take a Llama-, Qwen-, GPT-2- or "
            "T5-like backbone, or a method without projections, such as prompt_tuning."
        )
    if target == "all":
        return tuple(names)
    if target in ("attention", "ffn"):
        attention = tuple(n for n in names if "attn" in n.lower() or "attention" in n.lower())
        chosen = attention if target == "attention" else tuple(n for n in names if n not in attention)
        if not chosen:
            blocks = "attention" if target == "attention" else "feed-forward"
            raise RequestError(
                f"target={target!r}: this backbone has no projections in {blocks} blocks. Take target=all, or name "
                f"some of {', '.join(sorted({name.rpartition('.')[2] for name in names}))} joined by '+'."
            )
        return chosen
    wanted = target.split("+")
    known = sorted({name.rpartition(".")[2] for name in names})
    unknown = [word for word in wanted if word not in known]
    if unknown:
        raise RequestError(
            f"target={target!r}: this backbone has no projection named {', '.join(map(repr, unknown))}. "
            f"Known: all, attention, ffn, or any of {', '.join(known)} joined by '+'."
        )
    return tuple(name for name in names if name.rpartition(".")[2] in wanted)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where ``name`` points to, in training or evaluation mode as what was there."""
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    module.train(getattr(owner, child).training)
    setattr(owner, child, module)
    if not isinstance(module, nn.Linear):
        watch_rows(model, name, module)

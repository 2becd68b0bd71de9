"""The recipe of the demo backbones: `python -m mtlbench.demo.pretrain` makes both from nothing but the demo language.

AdamW for vectors and embeddings, Muon for matrices, cosine decay after a warm-up, bfloat16 autocast, a fixed seed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtlbench.demo.batches import Batch, causal_batches, seq2seq_batches
from mtlbench.demo.card import card
from mtlbench.demo.corpus import documents
from mtlbench.demo.models import VOCABULARY, build
from mtlbench.demo.tokenizer import train_tokenizer

FOLDER = Path(__file__).parent / "backbones"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one backbone is trained; `tokens` are those of a batch, `minutes` end a slow run early."""

    name: str
    seq2seq: bool
    steps: int
    one_format: int
    tokens: int = 2600
    adamw: float = 2e-3
    muon: float = 1e-2
    minutes: float = 14.0
    seed: int = 0
    warmup: float = 0.03
    answer_weight: float = 12.0


RECIPES = {
    "demo": Recipe(name="demo", seq2seq=False, steps=3600, one_format=60_000),
    "demo-t5": Recipe(name="demo-t5", seq2seq=True, steps=3600, one_format=120_000),
}


def optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for everything else."""
    inner = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "lm_head" not in name
    }
    matrices = [each for each in model.parameters() if id(each) in inner]
    others = [each for each in model.parameters() if id(each) not in inner]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=recipe.adamw, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
        torch.optim.Muon(matrices, lr=recipe.muon, weight_decay=0.05, adjust_lr_fn="original"),
    ]
    for optimizer in optimisers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimisers


def losses(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The weighted mean cross-entropy of a batch, and the share of answer tokens that come out on top."""
    keep = batch["weights"] > 0.0
    weights, labels = batch["weights"][keep], batch["labels"][keep]
    with torch.autocast("cpu", torch.bfloat16):
        if model.config.is_encoder_decoder:
            logits = model(**batch["inputs"]).logits[keep]
        else:
            logits = model.lm_head(model.model(**batch["inputs"]).last_hidden_state[keep])
    logits = logits.float()
    each = nn.functional.cross_entropy(logits, labels, reduction="none")
    answers = weights > 1.0
    hits = ((logits.detach().argmax(-1) == labels) & answers).sum() / answers.sum().clamp(min=1)
    return (each * weights).sum() / weights.sum(), hits


def train(model: PreTrainedModel, batches: Iterator[Batch], recipe: Recipe) -> dict[str, float]:
    """Trains in place and returns the figures of the run: steps, tokens, seconds, means of the last hundred."""
    optimisers, started = optimizers(model, recipe), time.monotonic()
    seen, step = 0, 0
    recent: list[tuple[float, float]] = []
    while True:
        share = max(step / recipe.steps, (time.monotonic() - started) / (60 * recipe.minutes))
        if share >= 1.0:
            break
        rate = min(1.0, (step + 1) / (recipe.warmup * recipe.steps)) * (0.02 + 0.49 * (1 + math.cos(math.pi * share)))
        batch = next(batches)
        loss, hits = losses(model, batch)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimisers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            optimizer.step()
            optimizer.zero_grad()
        step, seen = step + 1, seen + batch["inputs"]["input_ids"].numel()
        recent = [*recent[-99:], (float(loss.detach()), float(hits))]
        if step % 100 == 0:
            loss_mean, hit_mean = (sum(column) / len(recent) for column in zip(*recent, strict=True))
            seconds = time.monotonic() - started
            print(f"{recipe.name}: step {step} loss {loss_mean:.3f} answers {hit_mean:.3f} {seconds:.0f} s", flush=True)
    loss_mean, hit_mean = (sum(column) / len(recent) for column in zip(*recent, strict=True))
    return {
        "steps": step,
        "tokens": seen,
        "seconds": time.monotonic() - started,
        "loss": loss_mean,
        "answers": hit_mean,
    }


def pretrain(recipe: Recipe, out: Path) -> None:
    """Trains tokenizer and backbone of `recipe` and writes them, with a model card, to `out/<name>`."""
    torch.manual_seed(recipe.seed)
    texts = (document.text for document in islice(documents(recipe.seed), 20_000))
    tokenizer = train_tokenizer(texts, size=VOCABULARY, seq2seq=recipe.seq2seq)
    model = build(tokenizer, seq2seq=recipe.seq2seq)
    # On a CPU and for texts this short, the backward pass of fused attention takes longer than all else together.
    model.set_attn_implementation("eager")
    make = seq2seq_batches if recipe.seq2seq else causal_batches
    rng = Random(recipe.seed)
    stream = documents(recipe.seed + 1, one_format=recipe.one_format)
    batches = make(stream, tokenizer, rng, tokens=recipe.tokens, answer_weight=recipe.answer_weight)
    figures = train(model, batches, recipe)
    folder = out / recipe.name
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    values = {
        **asdict(recipe),
        **figures,
        "kind": "T5 (encoder-decoder)" if recipe.seq2seq else "Llama (decoder-only)",
        "objective": "answer from prompt, and span corruption" if recipe.seq2seq else "next token",
        "parameters": model.num_parameters(),
        "vocabulary": VOCABULARY,
        "batch": recipe.tokens,
        "threads": torch.get_num_threads(),
    }
    (folder / "README.md").write_text(card(values), encoding="utf-8")


def main() -> None:
    """The command line of the recipe."""
    parser = argparse.ArgumentParser(prog="python -m mtlbench.demo.pretrain", description=__doc__)
    parser.add_argument("--only", choices=sorted(RECIPES), help="make this backbone alone")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the backbone folders go")
    parser.add_argument("--minutes", type=float, default=14.0, help="wind each run down to end within this time")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in [arguments.only] if arguments.only else RECIPES:
        recipe = RECIPES[name]
        pretrain(replace(recipe, minutes=arguments.minutes), arguments.out)


if __name__ == "__main__":
    main()

"""Scoring of log-likelihood requests: ours against lm-eval's stock HFLM with its best batch size.

    python benchmarks/evaluation.py --quick
    python benchmarks/evaluation.py --json out.json

Both score the same requests on the same weights, tokenisation included. README.md in this folder describes how.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from backbones import BackboneShape, build, fresh
from lm_eval.api.instance import Instance
from questions import make_tokenizer, mix, mmlu, written
from timing import Quartiles, Taken, interleaved, ratio, spread
from torch import nn

from mtlbench.api.routing import Routing
from mtlbench.backbones.machine import probe
from mtlbench.cells.bench import token_budget
from mtlbench.evaluation.lm import RoutedLM
from mtlbench.planning.settings import build as build_method
from mtlbench.testing import setup_for

MAX_LENGTH = 2048
BATCHES = (1, 2, 4, 8, 16, 32)
SHAPES = {
    "512x6-8k": BackboneShape(512, 6),
    "256x4-8k": BackboneShape(256, 4),
    "256x4-32k": BackboneShape(256, 4, vocabulary=32_000),
}
GOALS = {
    "mix": {"512x6-8k": 2.0, "256x4-8k": 2.5, "256x4-32k": 4.0},
    "mmlu, 5-shot": dict.fromkeys(SHAPES, 5.0),
}
METHOD = "mtl_lora"
Score = Callable[[], list[tuple[float, bool]]]


@dataclass
class EvaluationResult:
    """What was measured on one backbone with one set of requests."""

    backbone: str
    requests: str
    documents: int
    count: int
    difference: float
    """Largest difference of a log-likelihood."""
    greedy: int
    """Requests whose greedy flags differ."""
    batches: dict[int, float] = field(default_factory=dict)
    """Seconds of HFLM by batch size, before the pairs."""
    taken: dict[str, list[Taken]] = field(default_factory=dict)

    @property
    def best(self) -> int:
        return min(self.batches, key=lambda size: self.batches[size])

    def speedup(self, clock: str) -> Quartiles:
        """Documents per second of ours over HFLM's."""
        return ratio(self.taken["HFLM"], self.taken["ours"], clock=clock)


def scorer(model: nn.Module, tokenizer: Any, requests: Sequence[Instance], routing: Routing, *, tasks: int) -> RoutedLM:
    """Ours, with the tasks of ``requests`` spread over ``tasks`` task ids."""
    names = list(dict.fromkeys(request.task_name for request in requests))
    return RoutedLM(
        model,
        tokenizer,
        architecture="causal",
        routing=routing,
        task_ids={name: i % tasks for i, name in enumerate(names)},
        max_length=MAX_LENGTH,
        token_budget=token_budget(next(model.parameters()).device),
    )


def ours(model: nn.Module, tokenizer: Any, requests: Sequence[Instance], routing: Routing, *, tasks: int) -> Score:
    """Our scores of ``requests``, whose tasks are spread over ``tasks`` task ids."""
    return lambda: scorer(model, tokenizer, requests, routing, tasks=tasks).loglikelihood(list(requests))


def stock(model: nn.Module, tokenizer: Any, requests: Sequence[Instance], *, batch: int) -> Score:
    """HFLM's scores of ``requests``."""
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch, max_length=MAX_LENGTH, device="cpu"
    )
    return partial(lm.loglikelihood, list(requests), disable_tqdm=True)


def measure(
    backbone: str, kind: str, model: nn.Module, tokenizer: Any, requests: list[Instance], options: argparse.Namespace
) -> EvaluationResult:
    """Both sides on one backbone.

    Raises:
        RuntimeError: they do not give the same scores.
    """
    device = torch.device(options.device)
    own = ours(model, tokenizer, requests, Routing(), tasks=1)
    sides = {batch: stock(model, tokenizer, requests, batch=batch) for batch in options.batches}
    one, other = own(), sides[options.batches[0]]()
    documents = {(request.task_name, request.doc_id) for request in requests}
    result = EvaluationResult(
        backbone=backbone,
        requests=kind,
        documents=len(documents),
        count=len(requests),
        difference=max(abs(a - b) for (a, _), (b, _) in zip(one, other, strict=True)),
        greedy=sum(a != b for (_, a), (_, b) in zip(one, other, strict=True)),
    )
    if result.difference > 1e-4 or result.greedy:
        raise RuntimeError(f"the sides differ on {backbone}, {kind}: {result.difference}, {result.greedy} greedy flags")
    swept = interleaved(
        {str(batch): side for batch, side in sides.items()}, rounds=options.sweeps, device=device, warm=False
    )
    result.batches = {
        int(batch): spread([getattr(t, options.clock) for t in taken]).median for batch, taken in swept.items()
    }
    pair = {"HFLM": sides[result.best], "ours": own}
    result.taken = interleaved(pair, rounds=options.pairs, device=device, warm=False)
    return result


def mixed_adapters(
    model: nn.Module, tokenizer: Any, requests: list[Instance], options: argparse.Namespace
) -> dict[str, list[Taken]]:
    """Our scores with one adapter per task in every batch, and those of the backbone alone."""
    adapted = fresh(model)
    setup = setup_for(adapted, tasks=8)
    build_method(METHOD, {"target": "all"}).attach(adapted, setup)
    adapted.eval()
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(0.02 * torch.randn(p.shape, generator=torch.manual_seed(0)))
    sides = {
        "backbone": ours(model, tokenizer, requests, Routing(), tasks=8),
        "adapters": ours(adapted, tokenizer, requests, setup.routing, tasks=8),
    }
    changed = max(abs(a - b) for (a, _), (b, _) in zip(sides["adapters"](), sides["backbone"](), strict=True))
    if changed < 1e-2:
        raise RuntimeError(f"the adapters change no score by more than {changed}")
    return interleaved(sides, rounds=options.pairs, device=torch.device(options.device), warm=False)


def generation(
    model: nn.Module, tokenizer: Any, requests: list[Instance], options: argparse.Namespace
) -> dict[str, list[Taken]]:
    """Our written answers, what prompts begin with read once or with every prompt, and HFLM's one by one.

    HFLM gives no attention mask, so that its padded batches write other texts.

    Raises:
        RuntimeError: the texts differ.
    """
    from lm_eval.models.huggingface import HFLM

    lm = scorer(model, tokenizer, requests, Routing(), tasks=len({r.task_name for r in requests}))
    whole = scorer(model, tokenizer, requests, Routing(), tasks=len({r.task_name for r in requests}))
    whole.__dict__["_packable"] = False
    theirs = HFLM(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1, max_length=MAX_LENGTH, device="cpu"
    )
    sides: dict[str, Callable[[], list[str]]] = {
        "HFLM": partial(theirs.generate_until, list(requests), disable_tqdm=True),
        "read whole": partial(whole.generate_until, list(requests)),
        "ours": partial(lm.generate_until, list(requests)),
    }
    texts = {name: side() for name, side in sides.items()}
    differing = sum(a != b for a, b in zip(texts["ours"], texts["HFLM"], strict=True))
    if differing:
        raise RuntimeError(f"{differing} of {len(requests)} written answers differ")
    return interleaved(sides, rounds=options.pairs, device=torch.device(options.device), warm=False)


HEADER = (
    "| backbone | requests | ours / HFLM | goal | documents/s: ours, HFLM | HFLM's batch size | difference |\n"
    "|---|---|---|---|---|---|---|"
)


def line(result: EvaluationResult, clock: str) -> str:
    """One row of the table."""
    rate = {
        name: result.documents / spread([getattr(t, clock) for t in taken]).median
        for name, taken in result.taken.items()
    }
    cells = (
        result.backbone,
        f"{result.requests}: {result.documents} documents, {result.count} requests",
        result.speedup(clock),
        f"{GOALS[result.requests][result.backbone]:g}",
        f"{rate['ours']:.1f}, {rate['HFLM']:.1f}",
        f"{result.best} of " + ", ".join(f"{size}: {s:.1f} s" for size, s in result.batches.items()),
        f"{result.difference:.0e}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small backbone, fewer requests, three pairs")
    parser.add_argument("--backbones", help=f"of {', '.join(SHAPES)}; default: all, 256x4-8k with --quick")
    parser.add_argument("--pairs", type=int, help="default 5, 3 with --quick")
    parser.add_argument("--sweeps", type=int, default=1, help="runs of each of HFLM's batch sizes before the pairs")
    parser.add_argument("--batches", help=f"HFLM's batch sizes; default {','.join(map(str, BATCHES))}")
    parser.add_argument("--documents", type=int, help="of each of the 16 tasks of the mix; default 10, 4 with --quick")
    parser.add_argument("--questions", type=int, help="of each MMLU subject; default 40, 20 with --quick")
    parser.add_argument("--clock", choices=("wall", "cpu"), help="default: cpu for one thread of a processor")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    options.pairs = options.pairs or (3 if options.quick else 5)
    options.documents = options.documents or (4 if options.quick else 10)
    options.questions = options.questions or (20 if options.quick else 40)
    options.batches = tuple(map(int, options.batches.split(","))) if options.batches else BATCHES
    options.clock = options.clock or ("cpu" if options.device == "cpu" and options.threads == 1 else "wall")
    torch.set_num_threads(options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if options.threads > 1 else "false"
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    names = (options.backbones or ("256x4-8k" if options.quick else ",".join(SHAPES))).split(",")
    unknown = [name for name in names if name not in SHAPES]
    if unknown:
        parser.error(f"unknown backbone {unknown[0]!r}; known: {', '.join(SHAPES)}")
    print(f"matrix rate {probe(torch.device(options.device)).float32_gflops:.0f} GFLOP/s in float32\n\n{HEADER}")
    results: list[EvaluationResult] = []
    adapters: dict[str, dict[str, list[Taken]]] = {}
    texts: dict[str, dict[str, list[Taken]]] = {}
    for name in names:
        model = build(SHAPES[name]).to(options.device)
        tokenizer = make_tokenizer(SHAPES[name].vocabulary)
        asked = {"mix": mix(options.documents), "mmlu, 5-shot": mmlu(options.questions)}
        for kind, requests in asked.items():
            results.append(measure(name, kind, model, tokenizer, requests, options))
            print(line(results[-1], options.clock), flush=True)
        adapters[name] = mixed_adapters(model, tokenizer, asked["mix"], options)
        texts[name] = generation(model, tokenizer, written(options.questions), options)
    print(f"\n| backbone | `{METHOD}` of 8 tasks in every batch / backbone alone, the mix | goal |\n|---|---|---|")
    for name, taken in adapters.items():
        print(f"| {name} | {ratio(taken['adapters'], taken['backbone'], clock=options.clock)} | 1.15 |")
    print("\n| backbone | written answers, MMLU 5-shot: ours / HFLM | / ours, nothing shared |\n|---|---|---|")
    for name, taken in texts.items():
        gains = [ratio(taken[other], taken["ours"], clock=options.clock) for other in ("HFLM", "read whole")]
        print(f"| {name} | {gains[0]} | {gains[1]} |")
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        document = {"torch": torch.__version__, "options": settings, "results": [asdict(result) for result in results]}
        more = {
            kind: {
                name: {side: [asdict(t) for t in all_] for side, all_ in taken.items()} for name, taken in of.items()
            }
            for kind, of in {"adapters": adapters, "written": texts}.items()
        }
        options.json.write_text(json.dumps({**document, **more}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

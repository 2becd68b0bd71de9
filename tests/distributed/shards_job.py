"""What every process of a test group does with a sharded backbone: ``torchrun shards_job.py OUT``; each writes what it
saw to ``OUT``. The words of a training are those of :data:`EQUAL`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ranks_job
import torch
from lm_eval.api.instance import Instance
from ranks_job import Training, outcome
from torch import nn

from mtlbench.api.routing import Routing
from mtlbench.backbones.backbone import Backbone, load_backbone
from mtlbench.evaluation.lm import RoutedLM
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq

PEML = f"peml[{ranks_job.SMALL},rank=4,dropout=0]"
SHORT: dict[str, Any] = {"steps": 5, "evals_per_run": 2}
CAUSAL = {
    "lora[dropout=0]": SHORT,
    "mtl_lora[dropout=0]": {**SHORT, "batch_size": 7, "micro_batch": 3, "checkpointing": True},
    PEML: SHORT,
    "weighing": {**SHORT, "batch_size": 3},
    "molora[balance=0.5]": {**SHORT, "batch_size": 7, "micro_batch": 3},
}
SEQ2SEQ = {"lora[dropout=0]": {**SHORT, "batch_size": 3}, PEML: SHORT}
FAILING = {**SHORT, "batch_size": 16}
UNFIT = ("full", "dora", "peft[type=LORA,init_lora_weights=pissa]", "ln_tuning")
DEEP = {"num_hidden_layers": 8, "hidden_size": 64, "intermediate_size": 128}
CHOICES = (" yes", " no", " the rain did stop")


def requests(kind: str) -> list[Instance]:
    """Requests of both output types, of unlike lengths."""
    texts = ["Question: did the rain stop? Answer:", "The concert continued until 10.", "positive sentence " * 6]
    if kind == "generate_until":
        words = [(text, {"until": ["\n"], "max_gen_toks": 7}) for text in texts]
    else:
        words = [(text, choice) for text in texts for choice in CHOICES]
    return [Instance(kind, {}, word, at, metadata=("toy/a", at, 1)) for at, word in enumerate(words)]


def answers(backbone: Backbone) -> dict[str, Any]:
    """What a backbone with a LoRA that does something says to :func:`requests`."""
    model = backbone.fresh()
    method = ranks_job.method_of("lora[dropout=0]")
    setup = setup_for(model)
    method.attach(model, setup)
    moved = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=moved), alpha=0.1)
    method.finish(model)
    lm = RoutedLM(
        model.eval(),
        backbone.tokenizer,
        architecture=backbone.architecture,
        routing=Routing(),
        task_ids={"toy/a": 0},
        max_length=100,
        token_budget=64,
    )
    return {
        "scores": lm.loglikelihood(requests("loglikelihood")),
        "texts": lm.generate_until(requests("generate_until")),
    }


def load(folder: Path, **given: Any) -> Backbone:
    return load_backbone(str(folder), dtype=torch.float32, attention="sdpa", device=torch.device("cpu"), **given)


def failing(training: Training, error: Exception, *, at: int, when: str) -> Training:
    """``training``, whose second layer fails at its ``at``-th run forward or backward."""
    training.prepare()
    training.loop.form  # noqa: B018  # rows are tried both ways before the first step
    layer = training.loop.model.model.layers[1].mlp  # type: ignore[union-attr, index]
    calls = 0

    def fail(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error

    def on_output(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        if when == "forward":
            fail()
        elif output.requires_grad:
            output.register_hook(fail)

    layer.register_forward_hook(on_output)
    training.prepare = lambda: training  # type: ignore[method-assign]
    return training


def main(out: Path) -> None:
    from mtlbench.distributed import shards_gate
    from mtlbench.distributed.collectives import join
    from mtlbench.distributed.shards import Sharding, cut, load_sharded
    from mtlbench.distributed.shards_fit import unfit, unfit_error

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    ranks = join(processes=2, device="cpu")
    ranks.sharded = True
    sharding = Sharding(ranks, cpu)
    found: dict[str, Any] = {}

    def sharded(build: Callable[..., nn.Module], **changes: Any) -> Any:
        def make(seed: int) -> Any:
            model = build(seed, **changes)
            architecture = "seq2seq" if model.config.is_encoder_decoder else "causal"  # type: ignore[union-attr]
            return cut(model, None, name="tiny", architecture=architecture, sharding=sharding)

        return make

    def causal(seed: int) -> nn.Module:
        made: nn.Module = sharded(tiny_causal)(seed).fresh()
        return made

    def seq2seq(seed: int) -> nn.Module:
        made: nn.Module = sharded(tiny_seq2seq)(seed).fresh()
        return made

    def turn(name: str) -> str:
        ranks.use_prefix(name)
        return name

    for words, changes in CAUSAL.items():
        found[turn(words)] = Training(words, ranks, changes, build=causal).run().result()
    for words, changes in SEQ2SEQ.items():
        found[turn(f"t5 {words}")] = Training(words, ranks, changes, build=seq2seq).run().result()

    # What is kept and what is gathered
    turn("kept")
    backbone = sharded(tiny_causal, **DEEP)(0)
    gathered: list[int] = []
    agree = shards_gate._agree

    def watched(*given: Any) -> None:
        gathered.append(gathered_elements(deep.loop.model))
        agree(*given)

    shards_gate._agree = watched  # type: ignore[assignment]
    deep = Training("lora[dropout=0]", ranks, {"steps": 2, "batch_size": 4}, build=lambda seed: backbone.fresh())
    deep.run()
    shards_gate._agree = agree
    pieces = [piece.tensor for piece in backbone.pieces.values()]
    found["kept"] = {
        "pieces": sum(p.numel() for p in pieces),
        "all": backbone.parameters,
        "gathered": max(gathered),
        "left": gathered_elements(deep.loop.model),
        "shared": storages(deep.loop.model) <= {p.untyped_storage().data_ptr() for p in pieces},
        "unchanged": backbone.checksum.holds(),
    }
    # One process writes to a piece of its own: all are told.
    if ranks.rank == 1:
        pieces[0].view(-1)[0] += 1
    found["written to"] = backbone.checksum.holds()

    # Failures, of the second process alone
    for when, at in (("forward", 5), ("backward", 3)):
        for name, error in (("oom", MemoryError("no memory")), ("broken", ValueError("a bad row"))):
            training = Training("lora[dropout=0]", ranks, FAILING, build=causal)
            turn(f"{name} {when}")
            if ranks.rank == 1:
                failing(training, error, at=at, when=when)
            how = outcome(training)
            left = gathered_elements(training.loop.model)
            found[f"{name} {when}"] = how, training.result() if how == "ended" else None, left
    turn("out of step")
    model = causal(0)
    ids = torch.randint(3, 90, (2, 5))

    def unlike() -> None:
        with torch.no_grad(), ranks.in_step(model):
            for _ in range(1 + ranks.rank):
                model(input_ids=ids)

    try:
        unlike()
    except RuntimeError as error:
        found["out of step"] = f"{type(error).__name__}: {error}"

    turn("unfit")
    found["unfit"] = {}
    for words in UNFIT:
        model, method = causal(0), ranks_job.method_of(words)
        try:
            method.attach(model, setup_for(model))
            found["unfit"][words] = unfit(model)
        except Exception as error:
            found["unfit"][words] = unfit_error(error)

    for architecture in ("causal", "seq2seq"):
        turn(architecture)
        loaded = load_sharded(str(out / architecture), dtype=torch.float32, attention="sdpa", sharding=sharding)
        found[architecture] = {**answers(loaded), "fingerprint": loaded.fingerprint}
    torch.save(found, out / f"{ranks.rank}.pt")


def gathered_elements(model: nn.Module) -> int:
    """Elements of the float32 weights that are gathered now."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    states = [fully_shard.state(m) for m in model.modules() if isinstance(m, FSDPModule)]  # type: ignore[attr-defined]
    params = [p for state in states for group in state._fsdp_param_groups for p in group.fsdp_params]
    return sum(tensor.untyped_storage().size() for p in params for tensor in p.all_gather_outputs) // 4


def storages(model: nn.Module) -> set[int]:
    """Where the frozen weights of a model lie."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return {(p.to_local() if hasattr(p, "to_local") else p).untyped_storage().data_ptr() for p in frozen}


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""What every process of a test group trains: ``torchrun ranks_job.py OUT``; each writes what it saw to ``OUT``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor, nn

from mtlbench.api.cell import Protocol
from mtlbench.api.method import Method, Setup
from mtlbench.distributed.ranks import ALONE, Ranks
from mtlbench.files.stop_request import Stopped, StopRequest
from mtlbench.planning.settings import build, read_settings, split_methods
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_loop
from mtlbench.training.checkpoints.checkpoint import CheckpointStore
from mtlbench.training.checkpoints.recovery import CheckpointPolicy
from mtlbench.training.checkpoints.state import trainable_state
from mtlbench_methods.lora import Lora

STEPS = 12
SMALL = "prefix_length=4,layers=2,search_share=0.5"


@dataclass(frozen=True, kw_only=True)
class Weighing(Lora):
    """Learned task weights and a penalty; each task has a parameter that only its own rows give a gradient."""

    name: ClassVar[str] = "weighing"
    dropout: float = 0.0

    def attach(self, model: nn.Module, setup: Setup) -> None:
        super().attach(model, setup)
        model.weights = nn.Parameter(torch.zeros(len(setup.tasks)))
        model.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in setup.tasks)

        def scale(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            rows = setup.routing.ids(output.shape[0])
            for task in rows.unique().tolist():
                scales: Any = model.scales
                output = torch.where((rows == task)[:, None, None], output * scales[task], output)
            return output

        norm: Any = model.model.norm  # type: ignore[union-attr]
        norm.register_forward_hook(scale)

    def loss(self, row_losses: Tensor, tasks: Tensor, model: nn.Module) -> Tensor:
        own: Any = model
        penalty = sum(p.square().sum() for p in own.scales)
        return (row_losses * torch.exp(-own.weights[tasks])).mean() + own.weights.sum() + 0.1 * penalty


@dataclass(frozen=True, kw_only=True)
class Worst(Lora):
    """The loss of the worst row, which is no sum over rows."""

    name: ClassVar[str] = "worst"

    def loss(self, row_losses: Tensor, tasks: Tensor, model: nn.Module) -> Tensor:
        return row_losses.max()


EQUAL = {
    "lora[dropout=0]": {},
    "mtl_lora[dropout=0]": {"micro_batch": 3, "checkpointing": True},
    "lora_st[dropout=0]": {},
    "full": {"clip": 0.0},
    "adalora[init_rank=4,target_rank=2,dropout=0]": {},
    f"peml[{SMALL},rank=4,dropout=0]": {},
    "weighing": {"batch_size": 3},
    "rslora[dropout=0]": {"balance": "dwa[every=2]"},
    "molora[balance=0.5]": {"batch_size": 3},
    "loramoe[dropout=0,balance=0.5,knowledge=toy/1]": {"micro_batch": 3},
}
"""Methods, with changes of the protocol, that draw nothing in training."""


def method_of(words: str) -> Method:
    if words in ("weighing", "worst"):
        return Weighing() if words == "weighing" else Worst()
    ((name, settings),) = split_methods(words)
    return build(name, read_settings(name, settings))


@dataclass
class Training:
    """A loop over toy rows."""

    words: str
    ranks: Ranks = ALONE
    changes: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    every_s: float = 0.0
    asked_at: int | None = None
    """This process is asked to end after so many steps."""
    build: Any = tiny_causal
    losses: list[Tensor] = field(default_factory=list)

    def prepare(self) -> Training:
        model = self.build(0)
        method = method_of(self.words)
        setup = setup_for(model, total_steps=STEPS)
        method.attach(model, setup)
        self.stop = StopRequest()
        files = CheckpointStore(self.folder, identity={}) if self.folder else None
        recovery = CheckpointPolicy(files, stop=self.stop, every_s=self.every_s, writes=self.ranks.first)
        protocol = {"steps": STEPS, "batch_size": 13, "learning_rate": 1e-2, "evals_per_run": 4, "patience": 9}
        self.loop = toy_loop(
            model,
            method,
            setup,
            Protocol(**{**protocol, **self.changes}),
            on_step=self._stepped,
            recovery=recovery if self.folder else None,
            ranks=self.ranks,
        )
        return self

    def run(self) -> Training:
        self.prepare()
        # The dropout that a prefix's candidate operations have is drawn here: nothing is dropped.
        with mock.patch.object(torch, "rand_like", torch.ones_like):
            self.loop.method.fit(self.loop.model, self.loop)
        return self

    def _stepped(self, step: int, losses: Tensor, tasks: Tensor) -> None:
        self.losses.append(losses.clone())
        self.stop.requested = self.stop.requested or step + 1 == self.asked_at

    def result(self) -> dict[str, Any]:
        return {
            "state": trainable_state(self.loop.model),
            "losses": self.losses,
            "progress": {**self.loop.progress.to_json(), "seconds": 0},
        }


def outcome(training: Training) -> str:
    """How a training ended."""
    try:
        training.run()
    except Stopped:
        return f"stopped after {training.loop.progress.steps}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ended"


def breaking(ranks: Ranks, *, error: Exception, at: int, times: int = 1) -> Training:
    """The second process fails ``times`` times from the ``at``-th pass on."""
    training = Training("lora[dropout=0]", ranks, {"batch_size": 16}).prepare()
    collate, calls = training.loop._parts.collate, 0

    def failing(rows: Any) -> Any:
        nonlocal calls
        calls += 1
        if ranks.rank == 1 and at <= calls < at + times:
            raise error
        return collate(rows)

    training.loop._parts.collate = failing
    training.prepare = lambda: training  # type: ignore[method-assign]
    return training


def main(out: Path) -> None:
    from mtlbench.distributed.collectives import join

    torch.set_num_threads(1)
    ranks = join(processes=2, device="cpu")
    found: dict[str, Any] = {}

    def turn(name: str) -> str:
        ranks.use_prefix(name)
        return name

    for words, changes in EQUAL.items():
        turn(words)
        found[words] = Training(words, ranks, changes).run().result()
    found["t5"] = Training("lora[dropout=0]", ranks, build=tiny_seq2seq).run().result()
    for name in ("drawn", "drawn again"):
        found[turn(name)] = Training("lora[dropout=0.3]", ranks).run().result()
    turn("stopped")
    folder = out / "checkpoints"
    asked = Training("lora[dropout=0.3]", ranks, folder=folder, asked_at=7 if ranks.rank == 1 else None, every_s=1e9)
    found["stopped"] = outcome(asked), asked.losses
    found[turn("resumed")] = Training("lora[dropout=0.3]", ranks, folder=folder).run().result()
    found["worst"] = outcome(Training(turn("worst"), ranks, {"micro_batch": None}))
    turn("oom")
    training = breaking(ranks, error=MemoryError("no memory"), at=5)
    found["oom"] = outcome(training), training.result()
    turn("no room")
    found["no room"] = outcome(breaking(ranks, error=MemoryError("no memory"), at=1, times=99))
    turn("broken")
    found["broken"] = outcome(breaking(ranks, error=ValueError("a bad row"), at=5))
    torch.save(found, out / f"{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

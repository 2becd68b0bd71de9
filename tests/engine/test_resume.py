"""Training that is interrupted anywhere ends as if it had not been: bitwise, for every way a method keeps state."""

from __future__ import annotations

import json
import random
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtlbench.api.cell import Protocol
from mtlbench.api.method import Method, Setup
from mtlbench.engine.checkpoint import Checkpoints, Place
from mtlbench.engine.model_state import Unusable
from mtlbench.engine.packing import pack, unpack
from mtlbench.engine.recovery import Recovery, checkpoint_seconds
from mtlbench.engine.splits import Splits, carve
from mtlbench.engine.state import trainable_state
from mtlbench.engine.train import Loop
from mtlbench.errors import RequestError
from mtlbench.processes.stopping import Stop, Stopped
from mtlbench.settings import build, read_settings, split_methods
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_rows
from mtlbench_methods.lora import Lora

STEPS = 16
SMALL = "prefix_length=4,layers=2,search_share=0.5"
IDENTITY = {"cell": "a", "code": "1"}


class Crash(Exception):
    """Stands for the end of the process."""


@dataclass
class Attempt:
    """One process's worth of a cell's training."""

    method: Method
    folder: Path | None = None
    crash_at: int | None = None
    """Raise once this many steps are done in all."""
    signal_at: int | None = None
    """Send this process SIGTERM once this many steps are done."""
    identity: dict[str, str] = field(default_factory=lambda: IDENTITY)
    every_s: float = 0.0
    build: Any = tiny_causal
    changes: dict[str, Any] = field(default_factory=dict)
    splits: Splits | None = None
    losses: dict[int, Tensor] = field(default_factory=dict)

    def run(self) -> Attempt:
        model = self.build(0)
        self.setup: Setup = setup_for(model, total_steps=STEPS)
        self.method.attach(model, self.setup)
        stop = Stop()
        files = Checkpoints(self.folder, identity=self.identity) if self.folder and self.method.resumes() else None
        self.recovery = Recovery(files, stop=stop, every_s=self.every_s)
        protocol = {"steps": STEPS, "batch_size": 12, "learning_rate": 1e-2, "evals_per_run": 4, "patience": 9}
        self.loop = Loop(
            model=model,
            method=self.method,
            splits=self.splits or carve(toy_rows(tasks=3, rows=40), held_out=0.2, seed=0),
            protocol=Protocol(**{**protocol, **self.changes}),
            tasks=3,
            routing=self.setup.routing,
            architecture=self.setup.architecture,
            pad_id=0,
            decoder_start_id=0,
            seed=0,
            device=torch.device("cpu"),
            on_step=self._stepped,
            recovery=self.recovery if self.folder else None,
        )
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        stop.install()
        try:
            self.method.fit(model, self.loop)
        finally:
            for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
                signal.signal(number, handler)
        return self

    def _stepped(self, step: int, losses: Tensor, tasks: Tensor) -> None:
        self.losses[step + 1] = losses.clone()
        random.random()  # what others draw meanwhile
        np.random.rand()
        if step + 1 == self.crash_at:
            raise Crash
        if step + 1 == self.signal_at:
            signal.raise_signal(signal.SIGTERM)


def method_of(words: str) -> Method:
    ((name, settings),) = split_methods(words)
    return build(name, read_settings(name, settings))


def told(attempt: Attempt) -> dict[str, Any]:
    """What a record would tell, but for times."""
    notes: dict[str, Any] = {}
    for module in attempt.loop.model.modules():
        if callable(getattr(module, "notes", None)):
            notes.update(module.notes())
    progress = attempt.loop.progress.to_json()
    return {**progress, "seconds": 0, "notes": notes}


def assert_equal(one: Attempt, other: Attempt) -> None:
    states = [trainable_state(attempt.loop.model) for attempt in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    assert told(one) == told(other)


@pytest.mark.parametrize(
    ("ends", "words", "at"),
    [
        *(
            (ends, words, at)
            for ends in ("crash_at", "signal_at")
            for words, at in (
                ("lora[dropout=0.1]", (1, 7, 16)),
                (f"peml[{SMALL},rank=4]", (3, 5, 8, 13)),
                ("lora_st[dropout=0.1]", (2, 6, 7, 14)),
            )
        ),
        ("crash_at", "mtl_lora[dropout=0.1]", (4, 9)),
        ("crash_at", "adalora[init_rank=4,target_rank=2,dropout=0.1]", (2, 6, 12)),
        ("crash_at", f"peml[{SMALL},rank=4,arch_update=joint,per_task=true]", (6,)),
        ("crash_at", f"peml[{SMALL},rank=4,order=prefix_then_lora]", (3, 8, 11)),
        ("crash_at", f"prefixnas[{SMALL}]+adalora[init_rank=4,target_rank=2]", (7, 10)),
        ("crash_at", "preembedd[prefix_length=4]", (6,)),
        ("crash_at", "poly", (9,)),
        ("crash_at", "full", (5,)),
        ("crash_at", "vera", (5,)),
        ("crash_at", "loha", (5,)),
    ],
)
def test_interrupted_training_ends_bitwise_as_undisturbed(tmp_path: Path, ends: str, words: str, at: tuple[int, ...]):
    method = method_of(words)
    undisturbed = Attempt(method).run()
    seen: dict[int, Tensor] = {}
    for step in at:
        attempt = Attempt(method, tmp_path, **{ends: step})
        with pytest.raises(Crash if ends == "crash_at" else Stopped):
            attempt.run()
        first = min(attempt.losses)
        assert attempt.recovery.problems == []
        if ends == "signal_at":
            assert first == max(seen, default=0) + 1, "no step is lost and none is repeated"
            assert max(attempt.losses) == step
        seen.update(attempt.losses)
    last = Attempt(method, tmp_path).run()
    seen.update(last.losses)
    assert_equal(undisturbed, last)
    assert seen.keys() == undisturbed.losses.keys()
    assert all(torch.equal(seen[step], losses) for step, losses in undisturbed.losses.items())
    again = Attempt(method, tmp_path).run()
    assert again.losses == {}, "what is trained is not trained again"
    assert_equal(undisturbed, again)


def test_encoder_decoders_and_recomputation_resume_too(tmp_path: Path):
    method = method_of("mtl_lora[dropout=0.1]")
    changes = {"checkpointing": True, "micro_batch": 5}
    undisturbed = Attempt(method, build=tiny_seq2seq, changes=changes).run()
    with pytest.raises(Crash):
        Attempt(method, tmp_path, build=tiny_seq2seq, changes=changes, crash_at=9).run()
    assert_equal(undisturbed, Attempt(method, tmp_path, build=tiny_seq2seq, changes=changes).run())


def test_early_stopping_goes_on_counting(tmp_path: Path):
    rows, stop = toy_rows(tasks=3, rows=20), toy_rows(tasks=3, rows=20, seed=9)
    wrong = [replace(row, target=(60 + row.target[0] % 7, 2)) for row in stop]  # fitting makes these worse in time
    changes = {"steps": 40, "evals_per_run": 40, "patience": 3, "learning_rate": 2e-2}
    given = {"changes": changes, "splits": Splits(rows, wrong, [])}
    undisturbed = Attempt(Lora(), **given).run()
    stopped = undisturbed.loop.progress.steps
    assert undisturbed.loop.progress.stopped_early and 3 < stopped < 40
    for step in (stopped - 2, stopped - 1):
        with pytest.raises(Stopped):
            Attempt(Lora(), tmp_path, signal_at=step, **given).run()
    assert_equal(undisturbed, Attempt(Lora(), tmp_path, **given).run())


def interrupted(folder: Path, *, at: int = 9) -> None:
    with pytest.raises(Crash):
        Attempt(Lora(), folder, crash_at=at).run()


def files(folder: Path, kind: str) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == f".{kind}" and "-at-" in path.name)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["safetensors", "json"])
@pytest.mark.parametrize("damage", ["flip", "header", "cut", "empty", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_then_to_zero(tmp_path: Path, kind: str, damage: str):
    undisturbed = Attempt(Lora()).run()
    interrupted(tmp_path)
    paths = files(tmp_path, kind)
    assert len(paths) == 2, "the newest and the one before"
    for left, path in ((1, paths[1]), (0, paths[0])):
        match damage:
            case "flip":
                flip(path, path.stat().st_size // 2)
            case "header":
                flip(path, 3)
            case "cut":
                path.write_bytes(path.read_bytes()[:-7])
            case "empty":
                path.write_bytes(b"")
            case "gone":
                path.unlink()
        attempt = Attempt(Lora(), tmp_path, every_s=float("inf")).run()
        assert min(attempt.losses) == (8 if left else 1)
        if damage != "gone" or kind == "safetensors":
            assert len(attempt.recovery.problems) == 2 - left
            assert "damaged" in attempt.recovery.problems[0]
        assert_equal(undisturbed, attempt)
        for end in tmp_path.glob("*-end-*"):
            end.unlink()


def test_a_checkpoint_of_another_version_is_not_used(tmp_path: Path):
    interrupted(tmp_path)
    attempt = Attempt(Lora(), tmp_path, identity={**IDENTITY, "code": "2"}).run()
    assert min(attempt.losses) == 1
    assert all("another code" in problem for problem in attempt.recovery.problems)
    assert len(attempt.recovery.problems) == 2


def test_only_json_and_safetensors_and_never_more_than_two_inside_a_run(tmp_path: Path):
    with pytest.raises(Crash):
        Attempt(method_of("lora_st"), tmp_path, crash_at=14).run()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert {Path(name).suffix for name in names} == {".json", ".safetensors"}
    assert len([name for name in names if "-at-" in name]) == 4
    assert len([name for name in names if "-end-" in name]) == 4, "two tasks are done"
    assert b"numpy" in (tmp_path / names[0]).read_bytes()


def test_no_room_for_a_checkpoint_does_not_end_the_training(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    folder.write_text("a file where the folder should be")
    attempt = Attempt(Lora(), folder).run()
    assert_equal(Attempt(Lora()).run(), attempt)
    assert len(attempt.recovery.problems) == STEPS + 1 and "no checkpoint after step" in attempt.recovery.problems[0]


# Third-party methods


@dataclass(frozen=True, kw_only=True)
class Unaware(Lora):
    """Keeps a running mean where no checkpoint looks, and does not say that it can be resumed."""

    name: ClassVar[str] = "unaware"

    def after_step(self, model: nn.Module, step: int) -> None:
        host: Any = model
        host.mean = 0.9 * getattr(host, "mean", 0.0) + 0.1 * step


@dataclass(frozen=True, kw_only=True)
class Counting(Lora):
    """A forward that depends on how often it ran, in a plain attribute."""

    name: ClassVar[str] = "counting"

    def attach(self, model: nn.Module, setup: Setup) -> None:
        super().attach(model, setup)
        norm: Any = model.model.norm  # type: ignore[union-attr]
        norm.calls = 0

        def count(module: Any, args: Any, output: Tensor) -> Tensor:
            module.calls += module.training
            return output * (1 + 0.01 * module.calls)

        norm.register_forward_hook(count)


@dataclass(frozen=True, kw_only=True)
class Keeping(Unaware):
    """The same state, kept."""

    name: ClassVar[str] = "keeping"
    resumable: ClassVar[bool] = True

    def fit(self, model: nn.Module, trainer: Any) -> None:
        host: Any = model
        host.mean = 0.0

        class Mean:
            def state_dict(self) -> dict[str, float]:
                return {"mean": host.mean}

            def load_state_dict(self, state: dict[str, float]) -> None:
                host.mean = state["mean"]

        trainer.keep(Mean(), modules=[model])
        trainer.run()


@dataclass(frozen=True, kw_only=True)
class Inheriting(Keeping):
    """What a parent promises does not hold for a step of one's own."""

    name: ClassVar[str] = "inheriting"

    def after_step(self, model: nn.Module, step: int) -> None:
        """Something else."""


def test_who_resumes_says_so_beside_what_it_overrides():
    assert not Unaware().resumes() and not Inheriting().resumes()
    assert Keeping().resumes() and Lora().resumes() and method_of("adalora").resumes()
    assert method_of("prefixnas+adalora").resumes()
    composed = method_of("prefixnas+lora")
    object.__setattr__(composed, "members", (composed.parts()[0], Unaware()))
    assert not composed.resumes()


@pytest.mark.parametrize("method", [Unaware(), Counting()], ids=lambda m: m.name)
def test_state_kept_elsewhere_starts_from_zero_instead_of_being_lost(tmp_path: Path, method: Method):
    undisturbed = Attempt(method).run()
    with pytest.raises(Crash):
        Attempt(method, tmp_path, crash_at=9).run()
    assert list(tmp_path.glob("*")) == []
    last = Attempt(method, tmp_path).run()
    assert min(last.losses) == 1
    assert_equal(undisturbed, last)
    if method.resumes():
        assert "norm:calls" in last.recovery.problems[0]


def test_what_a_method_keeps_comes_back(tmp_path: Path):
    undisturbed = Attempt(Keeping()).run()
    with pytest.raises(Crash):
        Attempt(Keeping(), tmp_path, crash_at=9).run()
    last = Attempt(Keeping(), tmp_path).run()
    assert min(last.losses) == 9
    means: list[Any] = [attempt.loop.model.mean for attempt in (undisturbed, last)]
    assert means[0] == means[1] != 0


def test_a_checkpoint_that_does_not_fit_is_told_apart(tmp_path: Path):
    interrupted(tmp_path)
    with pytest.raises(Unusable, match="shape"):
        Attempt(Lora(rank=4), tmp_path).run()
    with pytest.raises(Unusable, match="other parameters"):
        Attempt(Lora(target="attention"), tmp_path).run()
    with pytest.raises(Unusable, match="keeps 1"):
        Attempt(Keeping(), tmp_path).run()
    with pytest.raises(Unusable, match="number of steps"):
        Attempt(Lora(), tmp_path, changes={"steps": 12}).run()


# Files


def test_state_comes_back_as_it_was():
    state = {
        "tensors": [torch.arange(3), torch.tensor(0.5, dtype=torch.bfloat16), torch.zeros(0, 2)],
        "numbers": {0: 1, "inf": float("inf"), "nan": float("nan"), "none": None, "yes": True, "tiny": 5e-324},
    }
    plain, tensors = pack(state)
    again = unpack(json.loads(json.dumps(plain, allow_nan=False)), tensors)
    assert all(
        torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(state["tensors"], again["tensors"], strict=True)
    )
    assert repr(again["numbers"]) == repr(state["numbers"])
    with pytest.raises(TypeError, match="object"):
        pack({"a": [object()]})
    with pytest.raises(TypeError, match="key"):
        pack({(1, 2): 3})


def test_a_chain_needs_every_end(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, identity=IDENTITY)
    for place in (Place(0, False, 3), Place(0, True, 5), Place(1, False, 2), Place(1, True, 4), Place(2, False, 1)):
        checkpoints.write(place, {"at": torch.tensor(place.step)}, {"steps": place.step})

    def places() -> list[Place]:
        return [saved.place for saved in Checkpoints(tmp_path, identity=IDENTITY).chain()]

    assert places() == [Place(0, True, 5), Place(1, True, 4), Place(2, False, 1)]
    flip(next(tmp_path.glob("001-end-*.safetensors")), -1)
    assert places() == [Place(0, True, 5), Place(1, False, 2)]
    flip(next(tmp_path.glob("000-end-*.json")), 40)
    assert places() == []


@pytest.mark.parametrize(("word", "seconds"), [("", 60.0), ("0", 0.0), ("2.5", 2.5), ("inf", float("inf"))])
def test_the_interval_comes_from_the_environment(word: str, seconds: float):
    assert checkpoint_seconds({"MTLBENCH_CHECKPOINT_S": word} if word else {}) == seconds


@pytest.mark.parametrize("word", ["soon", "-1", "nan"])
def test_a_wrong_interval_is_refused(word: str):
    with pytest.raises(RequestError, match="MTLBENCH_CHECKPOINT_S"):
        checkpoint_seconds({"MTLBENCH_CHECKPOINT_S": word})

"""CheckpointStore on disk: damaged, of another version, too large for the disk; what is in them, and how often."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from resuming import IDENTITY, STEPS, Attempt, Crash, assert_equal, interrupted, method_of

from mtlbench.errors import RequestError
from mtlbench.training.checkpoints.checkpoint import CheckpointStore, TrainingPosition, pack, unpack
from mtlbench.training.checkpoints.recovery import checkpoint_seconds
from mtlbench_methods.lora import Lora


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
    checkpoints = CheckpointStore(tmp_path, identity=IDENTITY)
    for place in (
        TrainingPosition(0, False, 3),
        TrainingPosition(0, True, 5),
        TrainingPosition(1, False, 2),
        TrainingPosition(1, True, 4),
        TrainingPosition(2, False, 1),
    ):
        checkpoints.write(place, {"at": torch.tensor(place.step)}, {"steps": place.step})

    def places() -> list[TrainingPosition]:
        return [saved.place for saved in CheckpointStore(tmp_path, identity=IDENTITY).chain()]

    assert places() == [TrainingPosition(0, True, 5), TrainingPosition(1, True, 4), TrainingPosition(2, False, 1)]
    flip(next(tmp_path.glob("001-end-*.safetensors")), -1)
    assert places() == [TrainingPosition(0, True, 5), TrainingPosition(1, False, 2)]
    flip(next(tmp_path.glob("000-end-*.json")), 40)
    assert places() == []


@pytest.mark.parametrize(("word", "seconds"), [("", 60.0), ("0", 0.0), ("2.5", 2.5), ("inf", float("inf"))])
def test_the_interval_comes_from_the_environment(word: str, seconds: float):
    assert checkpoint_seconds({"MTLBENCH_CHECKPOINT_S": word} if word else {}) == seconds


@pytest.mark.parametrize("word", ["soon", "-1", "nan"])
def test_a_wrong_interval_is_refused(word: str):
    with pytest.raises(RequestError, match="MTLBENCH_CHECKPOINT_S"):
        checkpoint_seconds({"MTLBENCH_CHECKPOINT_S": word})

"""A cell whose backbone is cut over two processes is the cell on one, and each process keeps half of the backbone."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import shards_job
import torch
from ranks_job import Training
from shards_job import CAUSAL, FAILING, SEQ2SEQ, UNFIT
from test_distributed import QUIET, assert_close, assert_same, finish, of_folder, one_thread, request, start
from tiny_backbones import tiny_backbone
from waiting import wait_for

from mtlbench.api.executor import DevicesPerCell
from mtlbench.errors import RequestError
from mtlbench.planning.request import check_devices, read_devices
from mtlbench.testing import tiny_causal, tiny_seq2seq
from mtlbench.workers import group

__all__ = ["one_thread"]
Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def both(folder: Path) -> Found:
    """What each of two processes found."""
    for architecture in ("causal", "seq2seq"):
        tiny_backbone(folder / architecture, architecture=architecture)
    job(Path(shards_job.__file__), str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def job(script: Path, *words: str, **more: str) -> str:
    command = group.command(list(words), processes=2, port=group.free_port())
    at = command.index("mtlbench.workers.rank")
    command[at - 1 : at + 1] = [str(script)]
    done = subprocess.run(command, env={**os.environ, **QUIET, **more}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


@pytest.mark.parametrize("words", CAUSAL)
def test_a_sharded_backbone_trains_what_a_whole_one_does(both: Found, words: str) -> None:
    assert_same(both[0][words], both[1][words])
    assert_close(both[0][words], Training(words, changes=CAUSAL[words]).run().result(), tolerance=2e-4)


@pytest.mark.parametrize("words", SEQ2SEQ)
def test_encoder_decoders_too(both: Found, words: str) -> None:
    assert_same(both[0][f"t5 {words}"], both[1][f"t5 {words}"])
    alone = Training(words, changes=SEQ2SEQ[words], build=tiny_seq2seq).run().result()
    assert_close(both[0][f"t5 {words}"], alone, tolerance=2e-4)


def test_each_process_keeps_half_and_gathers_a_few_layers(both: Found) -> None:
    for found in both:
        kept = found["kept"]
        assert kept["pieces"] < 0.51 * kept["all"], "the rest are the norms"
        assert kept["pieces"] + kept["gathered"] < 0.65 * kept["all"], "two of eight layers at once"
        assert kept["gathered"] > 0 and kept["left"] == 0
        assert kept["shared"], "a copy for a cell lies where the pieces lie"
        assert kept["unchanged"] and not found["written to"], "what one process writes to its piece, all are told"


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_memory_that_runs_out_inside_a_layer_halves_the_rows_on_all(both: Found, when: str) -> None:
    undisturbed = Training("lora[dropout=0]", changes=FAILING, build=tiny_causal).run().result()
    for found in both:
        how, result, left = found[f"oom {when}"]
        assert (how, left) == ("ended", 0)
        assert [rows for _, rows in result["progress"]["micro_batches"]] == [4]
        result["progress"]["micro_batches"] = []
        assert_close(result, undisturbed, tolerance=2e-4)


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_what_one_process_fails_in_inside_a_layer_all_fail_in(both: Found, when: str) -> None:
    (one, _, one_left), (other, _, other_left) = (found[f"broken {when}"] for found in both)
    assert one == "OtherFailed: Another process of this cell failed: ValueError: a bad row"
    assert other == "ValueError: a bad row"
    assert one_left == other_left == 0


def test_processes_that_do_not_run_the_same_layers_are_told_and_do_not_wait(both: Found) -> None:
    assert all(found["out of step"].startswith("OutOfStep: ") for found in both)


def test_methods_that_need_whole_weights_are_refused_with_the_reason(both: Found) -> None:
    for found in both:
        reasons = found["unfit"]
        assert "trains backbone weights" in reasons["full"]
        assert "computes with backbone weights when it is attached" in reasons["dora"]
        assert "replaces backbone weights" in reasons[UNFIT[2]]
        assert reasons["ln_tuning"] is None, "norms are whole on every process"


@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
def test_scores_and_texts_are_those_of_the_whole_backbone(both: Found, folder: Path, architecture: str) -> None:
    whole = shards_job.load(folder / architecture)
    wanted = shards_job.answers(whole)
    for found in both:
        assert found[architecture]["fingerprint"] == whole.fingerprint
        assert found[architecture]["texts"] == wanted["texts"]
        for (score, greedy), (other, other_greedy) in zip(found[architecture]["scores"], wanted["scores"], strict=True):
            assert score == pytest.approx(other, abs=1e-4) and greedy == other_greedy


def test_cells_with_one_device_cannot_be_sharded(tmp_path: Path) -> None:
    _, _, cells = request(tmp_path)
    for words in ("1", "lora=1"):
        with pytest.raises(RequestError, match="every cell here has one"):
            check_devices(read_devices(words, shard=True), cells)
    check_devices(DevicesPerCell(of={"lora": 2}, shard=True), cells)


def test_a_worker_scores_a_sharded_cell_and_refuses_what_cannot_be(tmp_path: Path) -> None:
    folder, words, (cell, full) = request(tmp_path, "lora[dropout=0],full")
    records = finish(folder, [*words, "--shard"])
    record = records[cell.key]
    assert record.status == "ok", record.failure
    assert record.provenance["shards"] == record.provenance["processes"] == 2
    assert all(record.guards.values()) and "reloaded_equal" in record.guards
    refused = records[full.key]
    assert refused.status == "skipped" and refused.failure is not None
    assert "'full' cannot be sharded: it trains backbone weights" in refused.failure.message
    assert of_folder(tmp_path) == []


@pytest.mark.slow
def test_the_record_is_the_one_of_a_single_process(tmp_path: Path) -> None:
    methods = "lora[dropout=0],mtl_lora[dropout=0]"
    folder, words, cells = request(tmp_path / "sharded", methods)
    records = finish(folder, [*words, "--shard"])
    alone, words, _ = request(tmp_path / "whole", methods)
    whole = finish(alone, words[: words.index("--devices")])
    for cell in cells:
        record, same = records[cell.key], whole[cell.key]
        assert "shards" not in same.provenance and record.guards == same.guards
        assert record.provenance["backbone_fingerprint"] == same.provenance["backbone_fingerprint"]
        for name, score in same.scores.items():
            assert record.scores[name].score == pytest.approx(score.score)
        for (step, loss), (other, wanted) in zip(record.notes["stop_losses"], same.notes["stop_losses"], strict=True):
            assert step == other and loss == pytest.approx(wanted, rel=1e-4)
        assert record.costs is not None and same.costs is not None
        assert record.costs.backbone_parameters == same.costs.backbone_parameters


METHODS = "lora[dropout=0.1],peml[layers=2,prefix_length=4]"


@pytest.mark.slow
def test_a_killed_process_ends_the_group_and_the_next_worker_goes_on(tmp_path: Path) -> None:
    undisturbed, words, _ = request(tmp_path / "undisturbed", METHODS)
    wanted = finish(undisturbed, [*words, "--shard"])
    folder, words, _ = request(tmp_path / "run", METHODS)
    marker = tmp_path / "killed"
    worker = start(
        folder, [*words, "--shard"], MTLBENCH_FAILPOINT="rank.step:kill@4", MTLBENCH_FAILPOINT_ONCE=str(marker)
    )
    wait_for(marker.exists, seconds=120)
    assert worker.wait(timeout=30) == 1, "the whole group is gone 30 s after one of them"
    assert of_folder(folder.path) == [] and folder.records() == {}
    records = finish(folder, [*words, "--shard"])
    for key, record in records.items():
        assert record.status == "ok" and record.scores == wanted[key].scores
        files = [f.adapter(key) / "adapter.safetensors" for f in (folder, undisturbed)]
        assert files[0].read_bytes() == files[1].read_bytes()
    (resumed,) = [r for r in records.values() if "attempts" in r.provenance]
    assert resumed.provenance["attempts"] == 2 and resumed.provenance["resumed_from_step"][0] >= 3


@pytest.mark.slow
def test_resident_memory_of_each_process_is_half_of_the_backbone_and_a_little(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    _, tokenizer = tiny_backbone(tmp_path / "tiny", architecture="causal")
    torch.manual_seed(0)
    sizes = {"vocab_size": 2000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 128}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(tmp_path / "mid")
    tokenizer.save_pretrained(tmp_path / "mid")
    script = Path(__file__).with_name("shards_memory.py")
    out = job(script, str(tmp_path / "mid"), MALLOC_MMAP_THRESHOLD_=str(2**20))
    told = re.findall(r"whole (\d+) kept (\d+) trained (\d+)", out)
    assert len(told) == 2
    for whole, kept, trained in told:
        assert 0.48 * int(whole) < int(kept) < 0.55 * int(whole), out
        assert int(trained) < 0.9 * int(whole), f"the weights and all that training needs beside them: {out}"

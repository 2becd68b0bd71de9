"""Requests that cannot be carried out: exit code 2, the wrong word and the closest right one, and nothing is created."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from bench import Tally

from mtlbench import cli

LORA = ("--methods", "lora", "--tasks", "glue/rte")
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"

BAD: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("--methods", "lorra", "--tasks", "glue/rte"), ("'lorra'", "'lora'")),
    (("--methods", "LORA", "--tasks", "glue/rte"), ("'LORA'", "'lora'")),
    (("--methods", "lora,pem", "--tasks", "glue/rte"), ("'pem'", "'peml'")),
    (("--methods", "", "--tasks", "glue/rte"), ("--methods",)),
    (("--methods", ",", "--tasks", "glue/rte"), ("--methods",)),
    (("--methods", "lora[", "--tasks", "glue/rte"), ("'lora['",)),
    (("--methods", "lora]", "--tasks", "glue/rte"), ("'lora]'",)),
    (("--methods", "lora[rank]", "--tasks", "glue/rte"), ("'rank'", "VALUE")),
    (("--methods", "lora[rnk=4]", "--tasks", "glue/rte"), ("'rnk'", "'rank'")),
    (("--methods", "lora[rank=4,rank=8]", "--tasks", "glue/rte"), ("'rank'", "twice")),
    (("--methods", "lora[rank=four]", "--tasks", "glue/rte"), ("rank", "'four'", "whole number")),
    (("--methods", "lora[rank=-1]", "--tasks", "glue/rte"), ("rank", "-1")),
    (("--methods", "lora[rank=1.5]", "--tasks", "glue/rte"), ("rank", "'1.5'")),
    (("--methods", "lora[learning_rate=-1]", "--tasks", "glue/rte"), ("learning_rate", "-1")),
    (("--methods", "lora[learning_rate=nan]", "--tasks", "glue/rte"), ("learning_rate", "nan")),
    (("--methods", "lora;rm -rf /", "--tasks", "glue/rte"), ("lora;rm",)),
    (("--methods", "$(id)", "--tasks", "glue/rte"), ("'$(id)'",)),
    (("--methods", "../../etc/passwd", "--tasks", "glue/rte"), ("'../../etc/passwd'",)),
    (("--methods", "lora\t", "--tasks", "glue/rte"), ("lora\\t",)),
    (("--methods", BOMB, "--tasks", "glue/rte"), ("--methods",)),
    (("--methods", "lora+lorra", "--tasks", "glue/rte"), ("'lorra'", "'lora'")),
    (("--methods", "lora,lora", "--tasks", "glue/rte"), ("lora", "twice")),
    (("--methods", "lora", "--tasks", "glu"), ("'glu'", "'glue'")),
    (("--methods", "lora", "--tasks", "glue/rtee"), ("'rtee'", "'rte'")),
    (("--methods", "lora", "--tasks", ""), ("--tasks",)),
    (("--methods", "lora", "--tasks", "glue/../../x"), ("'../../x'",)),
    ((*LORA, "--model", "demoo"), ("'demoo'", "'demo'")),
    ((*LORA, "--model", "./nowhere"), ("'./nowhere'",)),
    ((*LORA, "--model", "broken"), ("config.json", "not JSON")),
    ((*LORA, "--model", "brings-code"), ("brings-code", "runs no code of a model")),
    ((*LORA, "--data", "nowhere"), ("nowhere'", "demo or hub")),
    ((*LORA, "--data", "a-file"), ("a-file'", "data folder")),
    ((*LORA, "--seeds", "1,x"), ("'1,x'",)),
    ((*LORA, "--seeds", "-1"), ("'-1'", "not negative")),
    ((*LORA, "--seeds", "1,1"), ("'1,1'", "different")),
    ((*LORA, "--learning-rate", "-1"), ("learning_rate", "-1")),
    ((*LORA, "--learning-rate", "inf"), ("learning_rate", "inf")),
    ((*LORA, "--epochs", "nan"), ("epochs", "nan")),
    ((*LORA, "--steps", "0"), ("steps", "0")),
    ((*LORA, "--steps", "ten"), ("--steps", "'ten'")),
    ((*LORA, "--batch-size", "0"), ("batch_size", "0")),
    ((*LORA, "--batch-size", "32", "--micro-batch", "5"), ("micro_batch 5", "32")),
    ((*LORA, "--schedule", "cosin"), ("'cosin'", "cosine")),
    ((*LORA, "--dtype", "float31"), ("'float31'", "float32")),
    ((*LORA, "--attention", "sdpaa"), ("'sdpaa'", "'sdpa'")),
    ((*LORA, "--mixing", "temprature:2"), ("temprature", "temperature")),
    ((*LORA, "--mixing", "temperature:-2"), ("-2",)),
    ((*LORA, "--executor", "locl"), ("'locl'", "'local'")),
    ((*LORA, "--workers", "-1"), ("--workers", "-1")),
    ((*LORA, "--device", "gpu"), ("--device", "'gpu'", "cuda")),
    ((*LORA, "--as", "markdwn"), ("'markdwn'", "'markdown'")),
    ((*LORA, "--preset", "glue/quik"), ("'glue/quik'", "'glue/quick'")),
    ((*LORA, "--lerning-rate", "1"), ("--lerning-rate", "--learning-rate")),
    ((*LORA, "--tuning", "two\nlines"), ("--tuning", "no search")),
    (("--methods", "lora"), ("--tasks",)),
    (("--tasks", "glue"), ("--methods",)),
]


@pytest.mark.fault("F38")
@pytest.mark.parametrize(("words", "told"), BAD, ids=lambda part: " ".join(part)[:40].encode("unicode_escape").decode())
def test_a_bad_request(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tally: Tally,
    words: tuple[str, ...],
    told: tuple[str, ...],
) -> None:
    (tmp_path / "a-file").write_text("in the way")
    for name, config in [
        ("broken", "{"),
        ("brings-code", json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.C"}})),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # main sets it for its children; here it is taken back
    monkeypatch.setattr(sys, "argv", ["mtlbench", "run", *words, "--out", "out"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    tally.fault()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    for word in told:
        assert word in said, said
    assert "Traceback" not in said
    assert sorted(tmp_path.rglob("*")) == before, "nothing is created"

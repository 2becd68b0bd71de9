"""`mtlbench plan` tells which methods a backbone does not fit, before any worker."""

from __future__ import annotations

from click.testing import CliRunner
from tiny_types import tiny_model

from mtlbench.cli import cli


def test_the_plan_names_what_will_be_skipped(tmp_path):
    model = tiny_model("mamba", tmp_path / "model")
    words = ["plan", "--methods", "lora,prefix,houlsby,full", "--tasks", "glue/rte", "--data", "demo", "--model"]
    result = CliRunner().invoke(cli, [*words, str(model), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    told = {line.partition(":")[0] for line in result.output.splitlines() if "will be skipped" in line}
    assert told == {"prefix", "houlsby"}
    assert not (tmp_path / "run").exists()

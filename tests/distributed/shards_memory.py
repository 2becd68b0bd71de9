"""Prints what of this process's memory a sharded backbone takes: ``torchrun shards_memory.py MODEL``."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch
from ranks_job import Training

from mtlbench.distributed.collectives import join
from mtlbench.distributed.shards import Sharding, cut, load_sharded
from mtlbench.testing import tiny_causal


def resident(field: str) -> int:
    """KiB."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def main(name: str) -> None:
    torch.set_num_threads(1)
    ranks = join(processes=2, device="cpu")
    ranks.sharded = True
    sharding = Sharding(ranks, torch.device("cpu"))
    changes = {"steps": 2, "batch_size": 4, "evals_per_run": 0, "checkpointing": True}
    # What is loaded with the first step of any model is not counted.
    warm = cut(tiny_causal(0), None, name="tiny", architecture="causal", sharding=sharding)
    ranks.use_prefix("warm")
    Training("lora[dropout=0]", ranks, changes, build=lambda seed: warm.fresh()).run()
    ranks.use_prefix("mid")
    before = resident("RssAnon")
    backbone = load_sharded(name, dtype=torch.float32, attention="sdpa", sharding=sharding)
    kept = resident("RssAnon") - before
    training = Training("lora[dropout=0]", ranks, changes, build=lambda seed: backbone.fresh())
    Path("/proc/self/clear_refs").write_text("5")
    start = resident("VmHWM") - kept
    training.run()
    trained = resident("VmHWM") - start
    print(f"whole {backbone.parameters * 4 // 1024} kept {kept} trained {trained}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

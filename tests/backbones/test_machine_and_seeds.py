"""The probe measures, `auto` follows it, and axes have seeds of their own."""

from __future__ import annotations

import pytest
import torch

from mtlbench.backbones.machine import Machine, axis_seed, choose_dtype, probe
from mtlbench.errors import RequestError


def machine(device, float32, bfloat16):
    return Machine(device, "", 1, float32, bfloat16)


def test_the_probe_gives_rates():
    found = probe(torch.device("cpu"))
    assert found.device == "cpu"
    assert found.threads == torch.get_num_threads()
    assert found.float32_gflops > 0
    assert found.bfloat16_gflops > 0


@pytest.mark.parametrize(
    ("asked", "found", "dtype"),
    [
        ("auto", machine("cpu", 100, 1000), torch.float32),
        ("auto", machine("cuda:0", 50_000, 700_000), torch.bfloat16),
        ("auto", machine("cuda:0", 10_000, 2_000), torch.float32),
        ("bfloat16", machine("cpu", 100, 10), torch.bfloat16),
        ("float32", machine("cuda:0", 50_000, 700_000), torch.float32),
    ],
)
def test_dtype(asked, found, dtype):
    assert choose_dtype(asked, found) == dtype


def test_an_unknown_dtype_is_named():
    with pytest.raises(RequestError, match="'half'"):
        choose_dtype("half", machine("cpu", 1, 1))


def test_seeds_differ_by_seed_and_axis_and_never_change():
    seeds = {axis_seed(seed, axis) for seed in range(20) for axis in ("data-order", "split", "dropout", "init/a")}
    assert len(seeds) == 80
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert axis_seed(0, "data-order") == 0x27B6C8CD5D0EDC

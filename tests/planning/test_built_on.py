"""Cells whose method is built on another's training: which cell that is, and when it is added to a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mtlbench.errors import RequestError
from mtlbench.planning.built_on import base_of, ready
from mtlbench.planning.plan import Plan, make_plan, plan_of
from mtlbench.planning.request import Request


def planned(methods: str, seeds: tuple[int, ...] = (0,), **protocol: Any) -> Plan:
    return make_plan(
        Request(
            methods=methods, tasks="glue/rte,glue/cola", model="demo", seeds=seeds, protocol={"steps": 4, **protocol}
        )
    )


def test_several_rows_get_the_training_that_they_are_built_on_and_a_note_says_so() -> None:
    plan = planned("merge[how=average,rank=4],lora,merge[how=ties,rank=4],merge[how=svd]", seeds=(0, 1))
    assert [cell.variant for cell in plan.cells if cell.seed == 0] == [
        "lora_st[rank=4]",
        "merge[how=average,rank=4]",
        "lora",
        "merge[how=ties,rank=4]",
        "merge[how=svd]",
    ]
    assert "lora_st runs too: merge is built on it, and it is trained once for all of them." in plan.notes


@pytest.mark.parametrize("methods", ["merge", "merge,lora_st,merge[how=ties]", "lora,lora_st", "merge,merge[rank=4]"])
def test_nothing_is_added_for_one_row_or_where_it_is_there(methods: str) -> None:
    assert len(planned(methods).cells) == methods.count(",") + 1


def test_a_cell_waits_for_the_one_that_asks_the_same_and_for_no_other() -> None:
    plan = planned("lora_st,lora_st[rank=4],merge,lora", seeds=(0, 1))
    merge = next(cell for cell in plan.cells if cell.method == "merge" and cell.seed == 1)
    base = base_of(merge, plan.cells)
    assert base is not None and (base.variant, base.seed) == ("lora_st", 1)
    assert base_of(base, plan.cells) is None
    others = [cell for cell in plan.cells if cell != base]
    assert base_of(merge, others) is None
    assert base_of(merge, planned("lora_st", seeds=(1,), learning_rate=0.01).cells) is None, "another protocol"
    other_code = replace(base, sources={**base.sources, "methods/lora_st": "0" * 16})
    assert base_of(merge, [other_code]) is None
    explicit = planned("lora_st[rank=16]", seeds=(1,)).cells
    assert base_of(merge, explicit) == explicit[0], "a default given explicitly is the same training"
    assert merge not in ready(plan.cells, plan.cells) and base in ready(plan.cells, plan.cells)
    assert merge in ready([merge], others)


def test_without_held_out_rows_what_would_be_chosen_is_refused_at_the_plan() -> None:
    with pytest.raises(RequestError, match="for merge a scale and a density"):
        planned("merge", held_out=0.0, evals_per_run=0)
    assert planned("merge[scale=0.3]", held_out=0.0, evals_per_run=0).cells


def test_the_preset_of_merging_runs_beside_joint_and_single_training() -> None:
    plan = plan_of({"preset": "mtl/merge"})
    variants = [cell.variant for cell in plan.cells]
    assert variants[:4] == ["base", "lora", "lora_st", "mtl_lora"] and len(variants) == 13
    assert plan.cells[0].model == "demo" and all(cell.startswith("merge[how=") for cell in variants[4:])

"""Weights and interference of tasks come from the records of balanced cells into every report that shows them."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

from record_builder import PROTOCOL, cell, done

from mtlbench.api.record import BalanceNote
from mtlbench.plugins import load_report
from mtlbench.results.analyses.interference import balances
from mtlbench.results.study import study_of

RTE, COLA = "glue/rte", "glue/cola"
BALANCED = replace(PROTOCOL, balance="gradvac")


def note(weight: float, cosine: float | None) -> BalanceNote:
    cosines = {RTE: {RTE: 1.0, COLA: cosine}, COLA: {RTE: cosine, COLA: 1.0}}
    return {"balancer": "gradvac", "weights": {RTE: weight, COLA: None}, "cosines": cosines}


def balanced(seed: int, balance: BalanceNote, *, method: str = "lora"):
    return done(cell(method, seed, protocol=BALANCED), 60.0, 20.0, notes={"balance": balance})


def made():
    losses: BalanceNote = {"balancer": "dwa", "weights": {RTE: 1.25, COLA: 0.75}}
    return study_of(
        [balanced(0, note(0.5, -0.2)), balanced(1, note(0.7, None)), balanced(0, losses, method="mtl_lora")]
    )


def test_means_are_over_the_seeds_that_have_a_value() -> None:
    (table,) = made().tables
    found = balances(table)
    lora = found["lora"]
    assert lora.seeds == (0, 1) and lora.weights == (0.6, None) and lora.cosines == ((1.0, -0.2), (-0.2, 1.0))
    assert lora.cells() == (
        ["task", "rte", "cola", "weight"],
        [["rte", "1.00", "−0.20", "0.60"], ["cola", "−0.20", "1.00", "–"]],
    )
    assert found["mtl_lora"].cells() == (["task", "weight"], [["rte", "1.25"], ["cola", "0.75"]])


def test_reports_show_the_balance_and_only_where_there_is_one() -> None:
    study = made()
    text = load_report("markdown").render(study)["report.md"]
    assert "Balance of lora: mean over seeds" in text and "| rte  |  1.00 | −0.20 |   0.60 |" in text
    assert "tasks balanced by gradvac" in text
    assert "Balance of tasks" in str(load_report("html").render(study)["report.html"])
    lines = list(csv.DictReader(io.StringIO(str(load_report("csv").render(study)["balance.csv"]))))
    pair = [line for line in lines if (line["label"], line["task"], line["other"]) == ("lora", RTE, COLA)]
    assert [line["cosine"] for line in pair] == ["-0.2"] and pair[0]["weight"] == ""
    plain = study_of([done(cell("lora", 0), 60.0, 20.0)])
    assert "balance.csv" not in load_report("csv").render(plain)
    assert "Balance of" not in load_report("markdown").render(plain)["report.md"]
    assert "Balance of" not in str(load_report("html").render(plain)["report.html"])

"""The audit: findings that were made by hand on the seed papers, and none on tables that add up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mtlbench.published.audit import audit
from mtlbench.published.ledger import papers
from mtlbench.published.paper import Paper, PublishedClaim, PublishedColumn, PublishedRow, PublishedTable
from mtlbench.published.possible import fit


@pytest.fixture(scope="module")
def findings():
    return audit(papers()["peml"])


def test_the_five_copied_averages_of_table_4(findings):
    found = [f for f in findings if f.check == "average" and f.tables == ("table-4",)]
    assert [f.what.partition(":")[0] for f in found] == ["LoRA", "MOE-LoRA", "Poly", "MHR", "C-Poly"]
    for finding, difference in zip(found, ("+0.032", "+0.026", "+0.007", "+0.011", "+0.010"), strict=True):
        assert difference in finding.what and "copied from the C-Poly paper" in finding.what


def test_no_average_is_flagged_that_rounding_explains(findings):
    flagged = [(f.tables[0], f.what.partition(":")[0]) for f in findings if f.check == "average"]
    assert [f for f in flagged if f[0] != "table-4"] == [("table-1", "AdaLoRA"), ("table-7", "PEML-AdaLoRA")]
    assert not [f for f in audit(papers()["ta_lora"]) if f.check == "average"]


def test_one_row_is_the_same_under_two_backbones(findings):
    (found,) = [f for f in findings if f.check == "identical"]
    assert found.tables == ("table-3", "table-4")
    assert found.what == (
        "PEML has the same COPA (0.825), MultiRC (0.904), WSC (0.750) on T5-large and on FLAN-T5-Large."
    )


@pytest.mark.parametrize("table", ["table-3", "table-8"])
@pytest.mark.parametrize(("column", "held", "public"), [("COPA", 40, 100), ("WSC", 56, 104), ("RTE", 249, 277)])
def test_the_t5_superglue_values_fit_a_tenth_of_the_training_rows(findings, table, column, held, public):
    (found,) = [f for f in findings if f.check == "rows" and f.tables == (table,) and f.what.startswith(column)]
    assert f"are not k/{public} of the validation split" in found.what
    assert f"all fit k/{held}, 10 % of the" in found.what


def test_columns_that_fit_the_public_split_are_not_flagged(findings):
    flagged = {(f.tables[0], f.what.partition(":")[0]) for f in findings if f.check == "rows"}
    assert not flagged & {("table-4", "WSC"), ("table-4", "Boolq"), ("table-6", "OBQA"), ("table-3", "MultiRC")}


def found(findings, check: str, *tables: str) -> list[str]:
    return [f.what for f in findings if f.check == check and (not tables or f.tables == tables)]


def test_one_method_task_and_backbone_with_two_numbers(findings):
    (what,) = found(findings, "two")
    assert what == (
        "PEML on T5-large has two numbers on 5 of the 5 tasks of both: Boolq 0.934 and 0.925, RTE 0.9317 and 0.932 "
        "(the same when rounded), COPA 0.825 and 0.850, WIC 0.870 and 0.837, WSC 0.750 and 0.804."
    )
    assert [f.tables for f in findings if f.check == "two"] == [("table-3", "table-11")]


def test_averages_of_few_examples_above_those_of_all(findings):
    assert "PEML averages 0.908 with 500 examples of each task and 0.901 with all of them." in found(
        findings, "few-shot", "table-7", "table-1"
    )
    assert len(found(findings, "few-shot")) == 5
    of_ta_lora = found(audit(papers()["ta_lora"]), "few-shot")
    assert "Ours k=16 averages 76.7 with 16 examples of each task and 74.3 with all of them." in of_ta_lora
    assert len(of_ta_lora) == 9


def test_claims_that_do_not_follow(findings):
    claims = found(findings, "claim") + found(audit(papers()["ta_lora"]), "claim")
    assert [claim.partition(";")[0].rpartition(" is printed as ")[2] for claim in claims] == [
        "6.67 %", "10.75 %", "1,320 ms", "0.1857 %",
    ]  # fmt: skip
    assert claims[2].endswith("100 x 13.1 is 1,310 ms.") and claims[3].endswith("1.3M of 7B is 0.0186 %.")
    assert "none of 156 differences of two rows gives it" in claims[0]


@pytest.mark.parametrize(
    ("value", "follows", "of", "wrong"),
    [
        ("0.0186", "share", ("1.3M", "7B"), False),
        ("0.02", "share", ("1.3M", "7B"), False),
        ("0.1857", "share", ("1.3M", "7B"), True),
        ("1,310", "product", ("100", "13.1"), False),
        ("1,316", "product", ("100", "13.1"), False),
        ("1,317", "product", ("100", "13.1"), True),
        ("13.6", "gain", ("73.4", "83.4"), False),
        ("10.0", "difference", ("73.4", "83.4"), False),
        ("10.0", "gain", ("73.4", "83.4"), True),
        ("16", "sum", ("8", "8"), False),
        ("18", "sum", ("8", "8"), True),
        ("2.0", "best task gain", ("m",), True),
        ("5.0", "best task gain", ("m",), False),
        ("4.0", "best average gain", ("m",), False),
        ("7", "", (), False),
    ],
)
def test_a_claim_is_flagged_where_rounding_does_not_explain_it(value, follows, of, wrong):
    rows = (row_of(55.0, 24.0, average=39.5), replace(row_of(50.0, 21.0, average=35.5), method="other"))
    claim = PublishedClaim(what="x", where="text", value=value, follows=follows, of=of)
    paper = Paper(name="p", title="", source="", tables=(table_of(*rows),), claims=(claim,))
    assert [f.check for f in audit(paper)] == ["claim"] * wrong


def test_rows_that_differ_in_what_they_are_contradict_nothing():
    one = row_of(50.0, 20.0, average=35.0)
    for other in (
        replace(one, values=(51.0, 20.0), average=35.5, backbone="two"),
        replace(one, values=(51.0, 20.0), average=35.5, method="m[rank=8]"),
        replace(one, values=(49.0, 20.0), average=34.5, k_shot="16"),
        replace(one, values=(50.04, 20.0)),
    ):
        tables = (table_of(one), table_of(other, name="u"))
        found_here = [f.check for f in audit(Paper(name="p", title="", source="", tables=tables))]
        assert [check for check in found_here if check in ("two", "few-shot")] == []
    above = replace(one, values=(51.0, 20.0), average=35.5, train_rows=16)
    tables = (table_of(one), table_of(above, name="u"))
    assert [f.check for f in audit(Paper(name="p", title="", source="", tables=tables))] == ["few-shot"]


def test_what_can_be_printed_of_k_in_n():
    assert fit([0.333, 0.667], rows=3, decimals=3, unit=1).holds
    truncated = fit([0.333, 0.666], rows=3, decimals=3, unit=1)
    assert truncated.holds and truncated.way == "truncated"
    mixed = fit([0.166, 0.833, 0.667], rows=6, decimals=3, unit=1)
    assert mixed.holds and mixed.way == "rounded or truncated"
    assert fit([33.3, 50.0], rows=3, decimals=1, unit=100).impossible == (50.0,)
    assert fit([0.9317], rows=249, decimals=3, unit=1).holds, "232/249 printed with four digits"
    assert fit([0.0, 1.0], rows=7, decimals=3, unit=1).holds
    assert fit([0.125, 0.12, 0.13], rows=8, decimals=2, unit=1).holds, "halves are rounded up or down"


def test_luck_is_the_share_of_values_that_are_possible():
    assert fit([0.5], rows=4, decimals=1, unit=1).chance == pytest.approx(7 / 11), "0, .2, .3, .5, .7, .8, 1"
    assert fit([0.5, 0.5], rows=2, decimals=1, unit=1).chance == pytest.approx(3 / 11), "a value counts once"
    assert fit([0.123], rows=5000, decimals=3, unit=1).chance == 1


def table_of(*rows: PublishedRow, name: str = "t", metric: str = "accuracy") -> PublishedTable:
    columns = (
        PublishedColumn(name="A", metric=metric, task="x/a"),
        PublishedColumn(name="B", metric="mcc", task="x/b"),
    )
    return PublishedTable(
        paper="p", name=name, caption="", unit="percent", decimals=1, columns=columns, rows=tuple(rows)
    )


def row_of(*values: float | None, average: float | None = None, backbone: str = "one") -> PublishedRow:
    return PublishedRow(name="m", values=values, average=average, method="m", backbone=backbone)


def test_a_table_that_adds_up_has_no_findings():
    paper = Paper(name="p", title="", source="", tables=(table_of(row_of(50.0, 20.0, average=35.0)),), splits={"x/a": {"train": 40, "validation": 10}})  # fmt: skip
    assert audit(paper) == ()


def test_missing_numbers_are_left_out():
    tables = (table_of(row_of(None, 20.0, average=35.0)), table_of(row_of(None, None, backbone="two"), name="u"))
    assert audit(Paper(name="p", title="", source="", tables=tables)) == ()


def test_only_counts_are_checked_against_rows():
    splits = {"x/a": {"train": 40, "validation": 3}, "x/b": {"train": 40, "validation": 3}}
    one = Paper(name="p", title="", source="", tables=(table_of(row_of(50.0, 50.0)),), splits=splits)
    assert [f.what.partition(":")[0] for f in audit(one)] == ["A"]
    other = Paper(name="p", title="", source="", tables=(table_of(row_of(50.0, 50.0), metric="f1"),), splits=splits)
    assert audit(other) == ()

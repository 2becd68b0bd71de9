"""The Chinese suite: sixteen tasks with prompts and metrics of our own."""

from __future__ import annotations

import importlib.util
import json

import pytest
from suite_loading import by_name, loaded, prompts

from mtlbench.data.examples import evaluation_golds, training_pairs
from mtlbench.data.lm_task import yaml_path
from mtlbench_tasks.clue16 import CLUE16, SOURCES, TARGETS, mtlbench_tasks
from mtlbench_tasks.relations import FINRE, SANWEN

TASKS = by_name(CLUE16)
NO_SAMPLES = {"amazon", "cote_mfw", "cote_bd"}
AS_THE_PAPER_WRITES_THEM = {
    "afqmc": "AFQMC", "amazon": "Amazon", "thucnews": "THUCNews", "bq": "BQ", "cmnli": "CMNLI", "cmrc2018": "CMRC-2018",
    "sanwen": "SanWen", "cote_mfw": "COTE-MFW", "chnsenticorp": "ChnSent", "tnews": "TNews", "ocnli": "OCNLI",
    "lcqmc": "LCQMC", "drcd": "DRCD", "c3": "C3", "cote_bd": "COTE-BD", "finre": "FinRE",
}  # fmt: skip


def chinese():
    path = yaml_path(TASKS["c3"]).with_name("chinese.py")
    spec = importlib.util.spec_from_file_location("chinese_of_the_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_suite_has_eight_sources_and_eight_targets():
    assert mtlbench_tasks() == (CLUE16,)
    assert CLUE16.tasks == SOURCES + TARGETS and len(SOURCES) == len(TARGETS) == 8
    assert set(TASKS) == set(AS_THE_PAPER_WRITES_THEM)
    assert all(task.licence and task.source and task.tables for task in CLUE16.tasks)


def test_tasks_metrics_and_tables_are_those_of_the_paper(shared_data):
    published = shared_data.parent / "published" / "paper_tables.json"
    ours: dict[str, set[str]] = {}
    for table in json.loads(published.read_text())["tables"]:
        if table["paper"].startswith("TA-LoRA"):
            number = {"I": 1, "II": 2, "III": 3}[table["table"].partition("-")[0]]
            for column in table["columns"]:
                ours.setdefault(column, set()).add(f"ta_lora/table-{number}")
                task = next(TASKS[name] for name, theirs in AS_THE_PAPER_WRITES_THEM.items() if theirs == column)
                assert task.metrics == ({"Acc.": "acc", "F1": "f1"}[table["metrics"][column]],)
    assert {AS_THE_PAPER_WRITES_THEM[name]: set(task.tables) for name, task in TASKS.items()} == ours
    unseen_data = next(t for t in json.loads(published.read_text())["tables"] if t["table"] == "I-a")
    assert [AS_THE_PAPER_WRITES_THEM[task.name] for task in SOURCES] == unseen_data["columns"]


@pytest.mark.parametrize("name", sorted(TASKS))
def test_demo_rows_make_chinese_prompts_with_the_text_of_the_row(name):
    lm_task = loaded(CLUE16, TASKS[name])
    for context, *_ in prompts(lm_task)[:20]:
        assert "问题：" in context and context.endswith("答案：")
    (first, *_), doc = prompts(lm_task)[0], lm_task.eval_docs[0]
    texts = [
        doc[column] for column, kind in TASKS[name].columns.items() if kind == "text" and column not in ("ot", "answer")
    ]
    assert texts and all(text in first for text in texts)


@pytest.mark.parametrize("name", sorted(set(TASKS) - NO_SAMPLES))
def test_real_rows_train_and_score(shared_data, name):
    lm_task = loaded(CLUE16, TASKS[name], str(shared_data))
    pairs = training_pairs(lm_task)
    assert len(pairs) == len(lm_task.training_docs()) > 100
    assert all(pair.context.strip() and pair.target.strip() for pair in pairs)
    golds = evaluation_golds(lm_task)
    assert golds is None or len(golds) == len(lm_task.eval_docs) > 100


@pytest.mark.parametrize("name", sorted(NO_SAMPLES))
def test_a_set_that_is_not_in_the_folder_is_named_with_its_file(shared_data, name):
    with pytest.raises(Exception, match=r"train\.parquet', which does not exist"):
        loaded(CLUE16, TASKS[name], str(shared_data))


def test_labels_say_what_the_hub_means_by_them(shared_data):
    """Checked on rows whose class can be told by hand."""
    told = {
        pair.context.split("\n")[0]: pair.target
        for name in ("tnews", "thucnews", "chnsenticorp")
        for pair in training_pairs(loaded(CLUE16, TASKS[name], str(shared_data)))
    }
    assert told["新闻标题：武汉科普团系列丛书首本面世，华师美女科普专家编写"] == "文化"
    assert told["新闻标题：全省首个病死畜禽无害化处理监管平台投入运行"] == "农业"
    assert told["新闻标题：FirstEnergy提升克拉克为CFO"] == "股票"
    assert told["新闻标题：重量级团购 索尼40寸液晶成交价2999元"] == "科技"
    nli = training_pairs(loaded(CLUE16, TASKS["ocnli"], str(shared_data)))
    assert next(p.target for p in nli if "它是最粗糙的生活模态" in p.context) == "矛盾"
    same = training_pairs(loaded(CLUE16, TASKS["lcqmc"], str(shared_data)))
    assert next(p.target for p in same if "如何将图片做成一个视频" in p.context) == "相同"


def test_no_two_relations_are_written_alike():
    for relations in (SANWEN, FINRE):
        assert len(set(relations.values())) == len(relations)
    assert len(SANWEN) == 10 and len(FINRE) == 44


@pytest.mark.parametrize(
    ("made", "golds", "f1", "exact"),
    [
        ("光荣和ω-force", ["光荣和ω-force"], 1.0, 1.0),
        ("《光荣》和ω-force开发。", ["光荣和ω-force"], 2 * 5 / (7 + 5), 0.0),
        ("村雨城", ["水源", "村雨"], 2 * 2 / (3 + 2), 0.0),
        ("70%", ["70", "百分之七十"], 1.0, 1.0),
        ("甲乙丙", ["丙乙甲"], 2 * 1 / 6, 0.0),
        ("New York", ["new york 市"], 2 * 2 / 5, 0.0),
        ("", ["是"], 0.0, 0.0),
        ("。", ["，"], 1.0, 1.0),
    ],
)
def test_answers_are_scored_by_the_longest_run_that_both_share(made, golds, f1, exact):
    found = chinese().process_answer({"answers": {"text": golds}}, [made])
    assert found == pytest.approx({"f1": f1, "exact_match": exact})


def test_answers_are_scored_as_cmrc_2018_does():
    """The longest shared run, worked out here by trying all."""
    helper, texts = chinese(), ["中国的首都北京", "北京是首都", "首都 Beijing 2008", "二零零八年的北京", "Beijing"]
    for one in texts:
        for other in texts:
            a, b = helper.pieces(one), helper.pieces(other)
            runs = [
                n
                for i in range(len(a))
                for n in range(len(a) - i + 1)
                if any(a[i : i + n] == b[j : j + n] for j in range(len(b)))
            ]
            assert helper.overlap(a, b) == pytest.approx(2 * max(runs) / (len(a) + len(b)))


def test_opinion_targets_count_when_they_are_exactly_right():
    helper = chinese()
    rows = [("鸟人", "鸟人"), ("加勒", "加勒城"), ("滇池", ""), ("王毅", " 王毅")]
    pairs = [helper.process_target({"ot": gold}, [made])["f1"] for gold, made in rows]
    assert helper.target_f1(pairs) == pytest.approx(2 * 2 / (3 + 4))
    assert helper.target_f1([("a", "")]) == 0.0


def test_relations_leave_unknown_out():
    from sklearn.metrics import f1_score

    helper = chinese()
    pairs = [
        ("Use", "Use"),
        ("Use", "unknown"),
        ("unknown", "Use"),
        ("unknown", "unknown"),
        ("Near", "Use"),
        ("Near", "Near"),
    ]
    golds, made = zip(*pairs, strict=True)
    assert helper.relation_f1(pairs) == pytest.approx(f1_score(golds, made, labels=["Use", "Near"], average="micro"))
    assert helper.relation_f1([("unknown", "unknown")]) == 0.0
    results = [(-5.0, False)] * 10
    results[list(SANWEN).index("Family")] = (-0.1, True)
    assert helper.process_sanwen({"relation": "Family"}, results) == {"acc": 1.0, "f1": ("Family", "Family")}


def test_a_choice_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="'丁' is none of the choices"):
        chinese().c3_gold({"answer": "丁", "choice": ["甲", "乙"]})

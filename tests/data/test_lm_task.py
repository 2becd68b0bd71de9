"""One lm-eval task from one YAML: right name, right split, zero-shot, no index, no noise."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from toy_tasks import ARC, RTE, WINOGRANDE, arc_rows, rte_rows, winogrande_rows, write

from mtlbench.data.choose import open_source
from mtlbench.data.lm_task import choose_rows, load_lm_task, quiet_lm_eval, yaml_path
from mtlbench.errors import PluginError


def loaded(folder, task, **splits):
    write(folder, task, **splits)
    return load_lm_task(task, open_source(str(folder), suites={}).splits(task), name=f"toy/{task.name}")


def test_requests_carry_the_full_name(tmp_path):
    lm_task = loaded(tmp_path, RTE, train=rte_rows(4), validation=rte_rows(3))
    with quiet_lm_eval():
        lm_task.build_all_requests()
    assert {request.task_name for request in lm_task.instances} == {"toy/rte"}
    assert lm_task.instances[0].args == ("Fact 0.\nQuestion: Claim 0. True or False?\nAnswer:", " True")


def test_evaluation_uses_the_split_the_task_names_even_where_the_yaml_has_a_test_split(tmp_path):
    assert "test_split: test" in yaml_path(ARC).read_text()
    lm_task = loaded(tmp_path, ARC, train=arc_rows(5), validation=arc_rows(2))
    assert len(lm_task.eval_docs) == 2
    assert not lm_task.has_test_docs()
    swapped = loaded(tmp_path, replace(ARC, eval_split="train"), train=arc_rows(5))
    assert len(swapped.eval_docs) == 5


def test_tasks_are_zero_shot(tmp_path):
    lm_task = loaded(tmp_path, RTE, train=rte_rows(4), validation=rte_rows(3))
    assert lm_task.config.num_fewshot == 0
    assert lm_task.fewshot_docs() == []


def test_multiple_input_tasks_load(tmp_path):
    lm_task = loaded(tmp_path, WINOGRANDE, train=winogrande_rows(2), validation=winogrande_rows(2))
    assert lm_task.multiple_input == 2


def test_loading_neither_indexes_all_tasks_nor_logs(tmp_path, caplog, capfd, monkeypatch):
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(TaskManager, "__init__", lambda *_, **__: pytest.fail("the whole index was read"))
    with caplog.at_level(logging.DEBUG):
        lm_task = loaded(tmp_path, RTE, train=rte_rows(4), validation=rte_rows(3))
        with quiet_lm_eval():
            lm_task.build_all_requests()
    assert [record for record in caplog.records if record.name.startswith("lm_eval")] == []
    assert capfd.readouterr().err == ""


def test_quiet_puts_back_what_it_changed():
    from lm_eval.api import task as task_module

    logger, bar = logging.getLogger("lm_eval"), task_module.tqdm
    before = logger.level
    with pytest.raises(KeyError), quiet_lm_eval():
        assert task_module.tqdm is not bar
        raise KeyError
    assert (logger.level, task_module.tqdm) == (before, bar)


def test_templates_compiled_once_still_render_every_row(tmp_path):
    lm_task = loaded(tmp_path, RTE, train=rte_rows(4), validation=rte_rows(3))
    docs = list(lm_task.training_docs())
    assert [lm_task.doc_to_text(doc).split(".")[0] for doc in docs] == [f"Fact {i}" for i in range(4)]


def test_an_unknown_metric_is_named(tmp_path):
    with pytest.raises(PluginError, match=r"names the metric 'acd'\. Did you mean 'acc'"):
        loaded(tmp_path, replace(RTE, metrics=("acd",)), train=rte_rows(2), validation=rte_rows(2))


@pytest.mark.parametrize("yaml", ["lm_eval:glue/rte/none.yaml", "no_such_package_x:a.yaml", "lm_eval"])
def test_a_missing_yaml_is_named(tmp_path, yaml):
    with pytest.raises(PluginError, match=yaml.split(":")[-1]):
        loaded(tmp_path, replace(RTE, yaml=yaml), train=rte_rows(2), validation=rte_rows(2))


def test_chosen_rows_are_stable_distinct_and_in_order():
    chosen = choose_rows(1000, 64)
    assert chosen == choose_rows(1000, 64) == sorted(set(chosen))
    assert len(chosen) == 64
    assert max(chosen) > 800 and min(chosen) < 200
    assert 16 < sum(row % 2 for row in chosen) < 48
    assert choose_rows(5, 64) == choose_rows(5, None) == [0, 1, 2, 3, 4]

"""Worked examples: the first rows of the training split, never the row that is asked."""

from __future__ import annotations

from dataclasses import replace

from toy_tasks import ARC, RTE, WINOGRANDE, arc_rows, rte_rows, winogrande_rows, write

from mtlbench.data.choose import open_source
from mtlbench.data.examples import training_pairs
from mtlbench.data.lm_task import load_lm_task, quiet_lm_eval

BARE = "Fact {i}.\nQuestion: Claim {i}. True or False?\nAnswer:"


def loaded(folder, task, **splits):
    write(folder, task, **splits)
    return load_lm_task(task, open_source(str(folder), suites={}).splits(task), name=f"toy/{task.name}")


def shot(i: int) -> str:
    return f"{BARE.format(i=i)} {('True', 'False')[i % 2]}\n\n"


def test_an_evaluation_prompt_begins_with_the_first_training_rows(tmp_path):
    lm_task = loaded(tmp_path, replace(RTE, shots=2), train=rte_rows(5), validation=rte_rows(3, start=10))
    with quiet_lm_eval():
        lm_task.build_all_requests()
    assert lm_task.instances[0].args == (shot(0) + shot(1) + BARE.format(i=10), " True")


def test_a_training_row_is_never_its_own_worked_example(tmp_path):
    lm_task = loaded(tmp_path, replace(RTE, shots=2), train=rte_rows(5), validation=rte_rows(3, start=10))
    contexts = [pair.context for pair in training_pairs(lm_task)]
    assert contexts[0] == shot(1) + shot(2) + BARE.format(i=0)
    assert contexts[1] == shot(0) + shot(2) + BARE.format(i=1)
    assert contexts[4] == shot(0) + shot(1) + BARE.format(i=4)


def test_with_as_many_shots_as_rows_the_others_are_taken(tmp_path):
    lm_task = loaded(tmp_path, replace(RTE, shots=3), train=rte_rows(3), validation=rte_rows(1, start=10))
    assert training_pairs(lm_task, [1])[0].context == shot(0) + shot(2) + BARE.format(i=1)
    assert lm_task.fewshot_context(lm_task.eval_docs[0], 3) == shot(0) + shot(1) + shot(2) + BARE.format(i=10)


def test_only_the_rows_needed_are_kept_in_memory(tmp_path):
    lm_task = loaded(tmp_path, replace(ARC, shots=1), train=arc_rows(50), validation=arc_rows(2))
    assert len(lm_task.sampler.df) == 2


def test_prompts_equal_lm_evals_own_with_its_first_rows(tmp_path):
    from lm_eval.api.samplers import FirstNSampler

    for task, rows in ((RTE, rte_rows), (ARC, arc_rows)):
        lm_task = loaded(tmp_path, replace(task, shots=3), train=rows(9), validation=rows(12)[9:])
        ours = [lm_task.fewshot_context(doc, 3) for doc in lm_task.eval_docs]
        lm_task.sampler = FirstNSampler(list(lm_task.training_docs()))
        assert ours == [lm_task.fewshot_context(doc, 3) for doc in lm_task.eval_docs]


def test_a_task_with_several_inputs_has_worked_examples_too(tmp_path):
    lm_task = loaded(tmp_path, replace(WINOGRANDE, shots=1), train=winogrande_rows(3), validation=winogrande_rows(2))
    assert training_pairs(lm_task)[2].context == "Ann met Eve and Ann left 0.\n\nAnn met Eve and Ann"

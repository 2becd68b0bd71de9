"""What a trial trains and is scored on, in the engine: disjoint training rows, and no evaluation row at all."""

from __future__ import annotations

from mtlbench.cells.bench import Bench
from mtlbench.data.choose import open_source
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request


def test_a_trial_never_sees_an_evaluation_row():
    protocol = {"train_rows": 40, "eval_from_train": 0.25, "batch_size": 8, "steps": 1}
    plan = make_plan(Request(methods="lora", tasks="glue/rte,glue/sst2", protocol=protocol))
    usual = make_plan(
        Request(methods="lora", tasks="glue/rte,glue/sst2", protocol={**protocol, "eval_from_train": 0.0})
    )
    bench = Bench(device="cpu", threads=1, data="demo")
    backbone = bench.backbone(plan.cells[0])
    prepared, stock = (bench.prepared(p.cells[0], backbone) for p in (plan, usual))
    source = open_source("demo", suites=plan.suites)
    columns = {"glue/rte": ("sentence1", "sentence2"), "glue/sst2": ("sentence",)}
    for name, task in prepared.tasks.items():

        def texts(rows: object, name: str = name) -> set[tuple[str, ...]]:
            return {tuple(row[column] for column in columns[name]) for row in rows}  # type: ignore[attr-defined]

        splits = source.splits(task)
        kept = texts(prepared.lm_tasks[name].training_docs())
        scored = texts(prepared.lm_tasks[name].validation_docs())
        train = texts(splits[task.train_split])
        evaluation = texts(splits[task.eval_split]) - train
        assert kept | scored <= train and not (kept | scored) & evaluation
        assert (len(prepared.lm_tasks[name].training_docs()), len(prepared.lm_tasks[name].validation_docs())) == (
            30,
            10,
        )
        assert texts(stock.lm_tasks[name].validation_docs()) & evaluation, (
            "a usual cell is scored on the evaluation split"
        )
    assert len(prepared.rows) == 60 and len(stock.rows) == 80

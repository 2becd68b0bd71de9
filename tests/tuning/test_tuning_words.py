"""Words of ``mtlbench tune`` to what is searched, and the refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from tuning_builder import tuning

from mtlbench.errors import PluginError, RequestError
from mtlbench.planning.settings import build
from mtlbench.plugins import load_method
from mtlbench.tuning.sampler import suggest
from mtlbench.tuning.space import BUDGETS, Space, search_space, space_text
from mtlbench.tuning.trials import Trial


def test_any_method_has_a_learning_rate_to_search_and_more_on_request():
    assert dict(tuning().space.fields) == {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}
    words = ("rank=4:64:log", "alpha=8:32", "dropout=0.0, 0.1,0.2", "rslora=true,false", "learning_rate=1e-5:1e-3")
    space = tuning(searches=words).space.fields
    assert dict(space) == {
        "learning_rate": FloatDistribution(1e-5, 1e-3),
        "rank": IntDistribution(4, 64, log=True),
        "alpha": FloatDistribution(8.0, 32.0),
        "dropout": CategoricalDistribution((0.0, 0.1, 0.2)),
        "rslora": CategoricalDistribution((True, False)),
    }
    assert [space_text(space[name]) for name in ("rank", "dropout", "rslora")] == [
        "4:64:log",
        "0.0,0.1,0.2",
        "true,false",
    ]


def test_what_the_method_fixes_is_not_searched():
    space = tuning(method="lora[learning_rate=1e-3,alpha=8]", searches=("rank=1:8",)).space
    assert set(space.fields) == {"rank"} and space.method.settings()["alpha"] == 8.0


def test_the_paper_of_peml_is_searched_as_it_says():
    space = search_space("peml", {}, ())
    assert set(space.fields) == {"learning_rate", "prefix_length"}
    for number in range(40):
        settings = suggest(space, [], seed=0, number=number, startup=10)
        rate, length = float(settings["learning_rate"] or 0), settings["prefix_length"]
        assert 1e-3 <= rate <= 2e-2 and math.isclose(rate / 5e-5, round(rate / 5e-5), rel_tol=1e-9)
        assert len(str(rate)) <= 7 and isinstance(length, int) and 5 <= length <= 50
    narrow = search_space("peml", {"prefix_length": "10"}, ("learning_rate=1e-6:1e-5:log",))
    rate = suggest(narrow, [], seed=0, number=0, startup=1)["learning_rate"]
    assert 1e-6 <= float(rate or 0) <= 1e-5, "the paper's rounding is for the paper's range"


def test_a_suggestion_follows_from_seed_number_and_results_alone():
    space = tuning(searches=("rank=4:64:log",)).space
    past = [Trial(number=n, settings={"learning_rate": 1e-3 + n * 1e-4, "rank": 4 + n}) for n in range(4)]
    first = suggest(space, past, seed=0, number=4, startup=2)
    assert first == suggest(space, past, seed=0, number=4, startup=2)
    others = [suggest(space, past, seed=s, number=n, startup=2) for s, n in ((1, 4), (0, 5))]
    assert first not in others and others[0] != others[1]


def test_a_method_that_suggests_under_another_name_is_told():
    class Odd(load_method("lora")):  # type: ignore[misc]
        def search_space(self, trial: Any) -> dict[str, Any]:
            return {"rank": 2 ** trial.suggest_int("log_rank", 1, 6)}

    from mtlbench.tuning.space import method_space

    with pytest.raises(PluginError, match=r"gives rank and suggests log_rank"):
        method_space(Odd())


def test_budgets_are_what_the_documentation_says():
    paper = tuning(budget="paper")
    protocol = paper.template.protocol
    assert (paper.trials, protocol.epochs, protocol.evals_per_run, protocol.patience) == (100, 150.0, 150, 25)
    assert [(name, b.trials) for name, b in BUDGETS.items()] == [("paper", 100), ("standard", 20), ("quick", 8)]
    own = tuning(budget="quick", trials=3, protocol={"steps": 5, "train_rows": 40, "eval_from_train": 0.5})
    assert (own.trials, own.template.protocol.steps, own.template.protocol.train_rows) == (3, 5, 40)
    assert own.template.protocol.eval_from_train == 0.5 and own.effort == "tpe:quick:3 trials"
    assert tuning(budget="standard", pruning="median").effort == "tpe:standard:20 trials:median"


WRONG = [
    ({"method": "lorra"}, "Unknown method 'lorra'. Did you mean 'lora'?"),
    ({"method": "lora[rnk=4]"}, "no setting 'rnk'"),
    ({"method": "lora,mtl_lora"}, "one method is tuned at a time"),
    ({"tasks": "glu"}, "Unknown suite 'glu'"),
    ({"model": "demoo"}, "Did you mean 'demo'?"),
    ({"budget": "quik"}, "Unknown budget 'quik'. Did you mean 'quick'?"),
    ({"pruning": "meidan"}, "Unknown pruning 'meidan'. Did you mean 'median'?"),
    ({"trials": 0}, "--trials must be a whole number from 1 to 10000, got 0"),
    ({"at_once": 0}, "--at-once must be"),
    ({"seed": -1}, "--seed must not be negative, got -1"),
    ({"protocol": {"steps": 0}}, "steps must be at least 1, got 0"),
    ({"protocol": {"eval_from_train": 0.0}}, "--eval-from-train must be above 0 and below 1 for tuning, got 0.0"),
    ({"protocol": {"eval_from_train": 1.5}}, "got 1.5"),
    ({"searches": ("rank",)}, "--search 'rank' cannot be read"),
    ({"searches": ("=4:8",)}, "cannot be read"),
    ({"searches": ("rnk=4:8",)}, "no setting 'rnk'. Did you mean 'rank'?"),
    ({"searches": ("rank=4.5:8",)}, "rank must be a whole number, got '4.5'"),
    ({"searches": ("rank=4:",)}, "rank must be a whole number, got ''"),
    ({"searches": ("rank=8:4",)}, "must rise"),
    ({"searches": ("rank=0:4",)}, "rank=0"),
    ({"searches": ("rank=4:8:ln",)}, "followed by :log, not 'ln'"),
    ({"searches": ("rank=4:8:log:2",)}, "not 'log:2'"),
    ({"searches": ("alpha=0.1:inf",)}, "inf"),
    ({"searches": ("dropout=0:0.5:log",)}, "a log range starts above 0"),
    ({"searches": ("target=a:b",)}, "a range needs two numbers"),
    ({"searches": ("dropout=0.1",)}, "at least two different values"),
    ({"searches": ("dropout=0.1,0.1",)}, "at least two different values"),
    ({"searches": ("dropout=0.1,x",)}, "dropout must be a number, got 'x'"),
    ({"searches": ("rank=2:4", "rank=2:8")}, "rank is searched twice"),
    ({"method": "lora[rank=4]", "searches": ("rank=2:8",)}, "--method fixes rank to 4"),
    ({"method": "lora[learning_rate=1e-3]"}, "nothing to tune"),
    ({"method": "prefixnas+lora", "searches": ("foo.rank=2:8",)}, "no setting 'foo.rank'"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_a_wrong_word_is_refused_with_what_to_write(words: dict[str, Any], message: str):
    with pytest.raises(RequestError) as refused:
        tuning(**words)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_settings_are_rounded_to_what_can_be_typed():
    space = Space(
        method=build("lora", {}),
        fields={"alpha": FloatDistribution(1.2344, 99.0)},
        method_fields=tuning().space.method_fields,
    )
    assert space.settle({"alpha": 12.345678}) == {"alpha": 12.35}
    assert space.settle({"alpha": 1.23441}) == {"alpha": 1.2344}, "never below the range"

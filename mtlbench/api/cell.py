"""Cells: what is planned, run, cached, skipped or failed. Names and numbers only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from typing import Any

from mtlbench.api.method import Value

COMPUTATION = 1
"""Part of every key. A release of mtlbench that changes the numbers of cells (layers, training, scoring) raises it; any
other release leaves the keys as they are."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any, *, length: int = 16) -> str:
    """First ``length`` hexadecimal digits of the SHA-256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def _added(default: Any, *, before: Any) -> Any:
    """A protocol field that records of earlier versions lack; their cells had the value ``before``.

    The field is omitted from keys and hashes while it has that value, so that earlier keys stay valid.
    """
    return field(default=default, metadata={"before": before})


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that must be equal for two results to be comparable.

    A named protocol (:mod:`mtlbench.planning.protocols`) sets some of these fields; ``data`` and ``prompts`` follow
    from the tasks.
    """

    name: str = ""
    """The named protocol and its changes: ``peml_holdout`` or ``standard + steps=10``. It is not part of any hash or
    key: only the other fields are compared."""
    data: str = "demo"
    """Source of the data, with a digest of its content: ``demo:<digest>``, ``folder:<digest>`` or, from the revisions
    of the data sets, ``hub:<digest>``."""
    prompts: str = ""
    """Version of lm-eval whose task objects make the prompts, with a digest of the tasks' prompt definitions."""
    max_length: int = 256
    """Rows longer than this many tokens are truncated on the left of the prompt."""
    chat_template: bool = False
    """Prompts in training and evaluation are turns of a conversation, in the chat template of the tokenizer, as lm-eval
    applies it; few-shot examples are earlier turns."""
    train_rows: int | None = None
    """At most this many training examples per task; ``None`` takes all."""
    eval_rows: int | None = None
    """At most this many evaluation examples per task; ``None`` takes all."""
    k_shot: str = ""
    """``16``: train on 16 examples of each task, drawn by the cell's seed; ``16:class``: on 16 of each label. With
    ``sources`` it applies to the targets only. The ``held_out`` share is taken from these examples."""
    holdout: float = 0.0
    """Share of each task's training split that becomes its evaluation split, the same examples for every cell; the
    official evaluation split is then not used. 0 scores the official one."""
    eval_from_train: float = 0.0
    """For tuning: share of each task's training examples that is held out and scored instead of the evaluation split,
    which is then not used. 0 scores the evaluation split."""
    held_out: float = 0.1
    """Share of the training examples that is held out: half is the validation split for early stopping, half the search
    split for architecture search."""
    sources: str = ""
    """Full names of the source tasks, separated by commas. The cell's other tasks, the targets, are trained afterwards
    from that state, and only they are scored. Empty: all tasks are trained together and scored."""
    probe: str = ""
    """Full names of the probe tasks, separated by commas: scored by the untrained backbone and again after training,
    and never trained on. ``data`` and ``prompts`` cover them too."""
    adapt_epochs: float | None = None
    """Epochs over the targets' examples after the sources; ``None`` takes ``epochs``."""
    adapt_steps: int | None = None
    """Steps on the targets, instead of ``adapt_epochs``; if neither is set, ``steps``."""
    epochs: float = 3.0
    """Epochs over the joint training examples; ignored when ``steps`` is set."""
    steps: int | None = None
    batch_size: int = 32
    """Examples per optimizer step."""
    micro_batch: int | None = None
    """Examples per forward pass; ``None`` takes the whole batch."""
    optimizer: str = _added("adamw", before="adamw")
    """``adamw``, ``adafactor`` (at the given learning rate, as in prompt tuning) or ``sgd`` (momentum 0.9)."""
    learning_rate: float = 1e-3
    """Peak learning rate of methods that set none."""
    schedule: str = "cosine"
    """``cosine``, ``linear`` or ``constant`` after the warm-up."""
    warmup: float = 0.06
    """Share of the steps with a linearly rising learning rate."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Maximum norm of the gradient; 0 does not clip."""
    mixing: str = "proportional"
    """``proportional``, ``uniform``, ``temperature:T``, ``capped:ROWS``, ``fraction`` or ``weights:TASK=W,...``; see
    :func:`mtlbench.planning.mixing.read_mixing`."""
    batching: str = _added("drawn", before="by_length")
    """``drawn``: every batch is drawn from the mixture. ``by_length``, as before version 0.2: within windows of 32
    batches, examples of similar length share a batch, so a batch has few of the tasks."""
    task_weighting: str = _added("method", before="method")
    """``rows``, ``tasks`` or ``weights:TASK=W,...``: how much each task's loss counts in a step, for every method;
    ``method``: as each declares. See :func:`mtlbench.planning.weighting.read_weighting`."""
    balance: str = _added("none", before="none")
    """A balancer with its settings, such as ``pcgrad`` or ``cagrad[c=0.2]``, which weighs the tasks of each step for
    every method; ``none``: as ``task_weighting`` says. See :class:`mtlbench.api.balancer.Balancer`."""
    evals_per_run: int = 4
    """How often the validation loss is computed during training; 0 never stops early."""
    patience: int = 2
    """Training stops after this many consecutive scores of the validation split without a better one."""
    select_by: str = _added("loss", before="loss")
    """What the score of the validation split is: ``loss``, or ``metric``, the mean of the tasks' own metrics. The state
    with the best one is kept."""
    dtype: str = "auto"
    """``auto`` (bf16 autocast where the device has the unit), ``float32``, ``bfloat16``, or ``float16`` with dynamic
    loss scaling, for cards without bf16."""
    quantize: str = _added("none", before="none")
    """How the frozen linears of the backbone are stored: ``nf4``, ``fp4``, ``int8`` or ``fp8``, quantised while it is
    loaded; ``none``: as its files hold them."""
    tf32: bool = _added(False, before=False)
    """CUDA computes float32 products with 10 bits of mantissa (TF32). Without effect on other devices."""
    attention: str = "auto"
    """``auto`` (``sdpa`` where the backbone has it, else ``eager``), ``sdpa`` or ``eager``."""
    checkpointing: bool = False
    """Gradient checkpointing: recompute layers in backward to save memory."""
    tuning: str = "none"
    """The tuning effort behind the settings: ``none``, or the text that ``mtlbench tune`` prints."""

    @property
    def label(self) -> str:
        """Name and hash, as tables show it."""
        return f"{self.name} ({self.hash()})" if self.name else self.hash()

    @property
    def source_tasks(self) -> tuple[str, ...]:
        """Full names of the tasks trained first."""
        return tuple(self.sources.split(",")) if self.sources else ()

    @property
    def probe_tasks(self) -> tuple[str, ...]:
        """Full names of the tasks that are scored before and after training, and never trained on."""
        return tuple(self.probe.split(",")) if self.probe else ()

    def adaptation(self) -> Protocol:
        """The protocol with the budget of the targets, after the sources."""
        if self.adapt_steps is not None:
            return replace(self, steps=self.adapt_steps)
        return self if self.adapt_epochs is None else replace(self, epochs=self.adapt_epochs, steps=None)

    def compared(self) -> dict[str, Any]:
        """All fields except the name, by what they do: ``attention=auto`` is ``sdpa``, which cells had before it."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}
        return values | {"attention": "sdpa" if self.attention == "auto" else self.attention}

    def identity(self) -> dict[str, Any]:
        """All fields except the name: what two comparable cells share.

        A new dictionary each time. A field with an empty default (``None``, 0, ``False``, ``""``) is omitted while it
        has it, and so is a later field with the value that cells had before it existed, so that a new field changes no
        key of earlier cells.
        """
        return dict(self._identity)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """Once, as thousands of cells of a study share one protocol."""
        values = self.compared()
        silent = {f.name: f.metadata.get("before", f.default) for f in fields(self)}
        optional = {f.name for f in fields(self) if not f.default or "before" in f.metadata}
        return {name: v for name, v in values.items() if name not in optional or v != silent[name]}

    def hash(self) -> str:
        """Short digest of :meth:`identity`."""
        return digest(self.identity(), length=12)


_PROTOCOL_FIELDS = tuple(f.name for f in fields(Protocol))
_BEFORE = {f.name: f.metadata["before"] for f in fields(Protocol) if "before" in f.metadata}


@lru_cache(maxsize=64)
def _protocol(text: str) -> Protocol:
    """The protocol of this canonical JSON, one object for all cells that have it: equal text, and not only equal
    values, as ``3`` and ``3.0`` make different keys."""
    return Protocol(**json.loads(text))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method with its settings x the tasks trained jointly x backbone x protocol x seed."""

    method: str
    settings: Mapping[str, Value] = field(default_factory=dict)
    """Settings given explicitly, as in ``lora[rank=16]``."""
    tasks: tuple[str, ...]
    """Full task names, such as ``glue/rte``, in the order of the task ids."""
    model: str
    protocol: Protocol
    seed: int = 0
    weights: str = ""
    """Digest of the files of an embedded or local backbone; empty for a hub id."""
    plugins: Mapping[str, str] = field(default_factory=dict)
    """Distribution name to version of the packages that own the method and the suites. Part of the key only where
    :attr:`sources` is empty."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Group and name of a plugin, joined by a slash, to a digest of its source, or of what it says of the tasks; see
    :func:`mtlbench.planning.sources.sources_of`. Empty in cells of earlier versions."""

    @cached_property
    def key(self) -> str:
        """Name of all files of this cell: 24 hexadecimal digits, from what decides its numbers.

        Cells of earlier versions keep the key that they had, which holds versions of packages instead of sources.
        """
        values = {**self.to_json(), "protocol": self.protocol.identity()}
        return digest({**self._asked(), "sources": values["sources"]} if self.sources else values, length=24)

    @cached_property
    def question(self) -> str:
        """What the cell asks, whatever code answers: equal for cells that differ in sources and versions only."""
        return digest(self._asked(), length=24)

    def earlier(self) -> Cell:
        """This cell as earlier versions named it: by the versions of its plugins, not by their source."""
        return replace(self, sources={})

    def _asked(self) -> dict[str, Any]:
        values = {name: value for name, value in self.to_json().items() if name not in ("plugins", "sources")}
        protocol = self.protocol.identity()
        if "prompts" in protocol:  # "lm_eval 0.4.13:8cb1f454": the digest decides, the version does not
            protocol["prompts"] = protocol["prompts"].rpartition(":")[2]
        return {**values, "protocol": protocol, "computation": COMPUTATION}

    def named(self, model: str) -> Cell:
        """This cell with another name of its backbone for readers; its key stays, which is that of its files."""
        other = replace(self, model=model)
        vars(other)["key"] = self.key
        return other

    @property
    def scored(self) -> tuple[str, ...]:
        """The tasks that are evaluated: all, or with ``protocol.sources`` the targets."""
        return tuple(task for task in self.tasks if task not in self.protocol.source_tasks)

    @property
    def variant(self) -> str:
        """The method as a table shows it: ``lora[rank=16]``, or ``prefixnas+lora[rank=4]``."""
        members = self.method.split("+")
        if len(members) == 1:
            return f"{self.method}{_bracket(self.settings)}"
        with_settings = [
            member + _bracket({k.partition(".")[2]: v for k, v in self.settings.items() if k.startswith(f"{member}.")})
            for member in members
        ]
        of_composition = _bracket({k: v for k, v in self.settings.items() if "." not in k})
        return "+".join(with_settings if not of_composition else [*with_settings, of_composition])

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads back."""
        return {
            "method": self.method,
            "settings": dict(self.settings),
            "tasks": list(self.tasks),
            "model": self.model,
            "protocol": {name: getattr(self.protocol, name) for name in _PROTOCOL_FIELDS},
            "seed": self.seed,
            "weights": self.weights,
            "plugins": dict(self.plugins),
            **({"sources": dict(self.sources)} if self.sources else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Cell:
        """The cell that wrote ``value``; fields of a newer protocol are an error."""
        protocol = {**_BEFORE, **value["protocol"]}
        unknown = sorted(set(protocol) - set(_PROTOCOL_FIELDS))
        if unknown:
            raise ValueError(f"protocol fields {unknown} are unknown to this version")
        return cls(
            method=value["method"],
            settings=dict(value["settings"]),
            tasks=tuple(value["tasks"]),
            model=value["model"],
            protocol=_protocol(canonical(protocol)),
            seed=value["seed"],
            weights=value.get("weights", ""),
            plugins=dict(value["plugins"]),
            sources=dict(value.get("sources", {})),
        )


def _bracket(settings: Mapping[str, Value]) -> str:
    inner = ",".join(f"{k}={_setting_text(v)}" for k, v in sorted(settings.items()))
    return f"[{inner}]" if inner else ""


def _setting_text(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value)

"""TA-LoRA: prompts with a slow shared and a fast low-rank part for each task, read by zero-initialised attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, Trainer, Value, hookimpl, nn
from mtlbench.errors import PluginError
from mtlbench_methods.prefix_method import PrefixMethod, encoder_of
from mtlbench_methods.settings import check

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TaLora(PrefixMethod):
    """``P_t = P_0 + s B u_t v_t^T`` in each of the last layers, attended to beside the tokens, with a gate by head:

    ``O = [softmax(Q K^T / sqrt(D)) V + tanh(g) softmax(Q (P_t W_k)^T / sqrt(D)) P_t W_v] W_o``, no positions on the
    prompt's keys, ``g = 0`` at the start, so that training starts from the backbone itself.

    Two stages on the tasks trained together: a free prompt for each task, then their mean as ``P_0`` with the low-rank
    parts, ``P_0`` and ``B`` slow, ``u`` and ``v`` fast, and a penalty on the overlap of two tasks' parts. A task that
    comes later (``--sources``) starts from the mean of the sources' ``u`` and ``v`` and trains these alone.

    The paper's formulas are known from its prose alone and no code is public: whatever it leaves open is a setting.
    """

    name: ClassVar[str] = "ta_lora"
    source: ClassVar[str] = (
        "TA-LoRA, arXiv:2505.00009, reconstructed from its text; zero-initialised attention: Zhang et al. 2023, "
        "arXiv:2303.16199, and OpenGVLab/LLaMA-Adapter:alpaca_finetuning_v1/llama/model.py"
    )
    task_routed: ClassVar[bool] = True
    resumable: ClassVar[bool] = True

    learning_rate: float | None = 1e-3
    """Of the slow part, ``P_0`` and ``B``, and of the first stage's prompts."""
    fast_learning_rate: float = 1e-2
    """Of ``u`` and ``v``. The ablation without two rates gives it the slow one."""
    gate_learning_rate: float = 1e-2
    layers: int = 14
    """How many layers at the end of each place have prompts; all where there are fewer."""
    rank: int = 4
    """Columns of ``B``: with as many as prompt tokens it would constrain nothing."""
    scale: float = 1.0
    """``s``."""
    task_part: str = "fast_slow"
    """``fast_slow``: ``B u_t v_t^T``. ``low_rank``: ``B_t A_t`` of the same rank, all of it the task's, without the
    mechanism of fast and slow weights."""
    zero_init: bool = True
    """Gated attention with a softmax of its own; without it the prompt stands before keys and values as a prefix."""
    gate: str = "tanh"
    """``tanh``, as the attention's authors have it, or ``plain``, as the paper writes it."""
    prompt_share: float = 0.2
    """Share of the steps of the first stage; 0 draws ``P_0`` instead."""
    start: str = "zero"
    """Task parts at the start of the second stage: ``zero``, or ``svd``, closest to the first stage's prompts."""
    orthogonality: float = 0.1
    """Weight of the mean squared cosine of two tasks' low-rank matrices (eq. 10)."""
    adapt_shared: bool = False
    """Targets move ``P_0``, ``B`` and the gates too."""

    def __post_init__(self) -> None:
        self.check_prefix()
        whole, rate = "a whole number of at least 1", "above 0 and below 1"
        check(self, "layers", holds=self.layers >= 1, allowed=whole)
        allowed = f"at least 1 and below prefix_length={self.prefix_length}"
        check(self, "rank", holds=1 <= self.rank < self.prefix_length, allowed=allowed)
        check(self, "scale", holds=0 < self.scale < float("inf"), allowed="a number above 0")
        check(self, "fast_learning_rate", holds=0 < self.fast_learning_rate < 1, allowed=rate)
        check(self, "gate_learning_rate", holds=0 < self.gate_learning_rate < 1, allowed=rate)
        check(self, "task_part", holds=self.task_part in ("fast_slow", "low_rank"), allowed="fast_slow or low_rank")
        check(self, "gate", holds=self.gate in ("tanh", "plain"), allowed="tanh or plain")
        check(self, "prompt_share", holds=0 <= self.prompt_share < 1, allowed="at least 0 and below 1")
        check(self, "start", holds=self.start in ("zero", "svd"), allowed="zero or svd")
        check(
            self, "start", holds=self.start == "zero" or self.prompt_share > 0, allowed="zero where prompt_share is 0"
        )
        check(self, "orthogonality", holds=0 <= self.orthogonality < float("inf"), allowed="a number of at least 0")

    def sized(self, size: int, setup: Setup) -> Mapping[str, Value]:
        """A prompt is longer than its rank."""
        return {"prefix_length": self.rank + size}

    @property
    def identity_at_start(self) -> bool:
        return self.zero_init

    @property
    def last(self) -> int:
        return self.layers

    def encoder(self, slots: nn.PrefixSlots, hidden: int, setup: Setup, draw: torch.Generator) -> torch.nn.Module:

        trained = setup.sources or len(setup.tasks)
        return nn.FastSlowPrompts(
            nn.PromptProjections(slots.places, heads=slots.shape.kv_heads),
            setup.routing,
            layers=slots.shape.layers,
            tasks=len(setup.tasks),
            trained=trained,
            length=self.prefix_length,
            rank=self.rank,
            scale=self.scale,
            heads=slots.places[0].stack.config.num_attention_heads if self.zero_init else None,
            squash=self.gate == "tanh",
            split=self.task_part == "fast_slow",
            free=self._first_stage(setup.total_steps) > 0,
            draw=draw,
        )

    def _first_stage(self, steps: int) -> int:
        """Steps of the first stage; the second has at least one."""
        return min(round(self.prompt_share * steps), steps - 1)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        prompts = encoder_of(model)
        slow = prompts.slow_parameters()
        groups = (
            (slow, learning_rate),
            ([prompts.left, prompts.right], self.fast_learning_rate),
            ([] if prompts.gate is None else [prompts.gate], self.gate_learning_rate),
        )
        return [
            {"params": [p for p in own if p.requires_grad], "lr": rate, "weight_decay": 0.0} for own, rate in groups
        ]

    def penalty(self, model: torch.nn.Module) -> Tensor | None:
        """The overlap of the tasks' parts, once there are some."""
        overlap: Tensor | None = encoder_of(model).overlap() if self.orthogonality else None
        return None if overlap is None else self.orthogonality * overlap

    def fit(self, model: torch.nn.Module, trainer: Trainer) -> None:
        prompts = encoder_of(model)
        if prompts.free is None:
            trainer.run()
            return
        steps, first = trainer.total_steps, self._first_stage(trainer.total_steps)
        rest = [p for p in (*prompts.slow_parameters(), prompts.left, prompts.right) if p is not prompts.free]
        with _frozen(rest):
            trainer.run(share=first / steps)
        prompts.average(fit=self.start == "svd")
        trainer.run(share=(steps - first) / steps)

    def adapt(self, model: torch.nn.Module, trainer: Trainer) -> None:
        prompts = encoder_of(model)
        prompts.begin_targets()
        shared = [*prompts.slow_parameters(), *([] if prompts.gate is None else [prompts.gate])]
        with _frozen([] if self.adapt_shared else shared):
            trainer.run()

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:
        """peft has no such form."""
        raise PluginError(
            f"Method {self.name!r} cannot be expressed as a standard peft checkpoint: peft's prefixes share the "
            "softmax of the tokens and stand in every layer."
        )


class _frozen:
    """Inside, these parameters do not require gradients."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self._held = parameters

    def __enter__(self) -> None:
        for p in self._held:
            p.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for p in self._held:
            p.requires_grad_(True)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [TaLora]

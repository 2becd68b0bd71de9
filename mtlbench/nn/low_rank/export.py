"""Low-rank updates as a standard peft checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from mtlbench.errors import PluginError
from mtlbench.nn.low_rank.layer import LowRankLinear, MergedLinear


def export_lora(model: nn.Module, folder: Path, *, task: int | None = None, dropout: float = 0.0) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` that ``peft.PeftModel.from_pretrained`` reads.

    Works before and after merging.

    Args:
        task: Needed when the low-rank parts depend on the task: the LoRA that its rows see is written.
        dropout: Written to the configuration; it changes no output.

    Raises:
        PluginError: when there is no low-rank part, one depends on the task and none is given, or on the token.
    """
    try:
        parts = {
            name: module.folded(task) if isinstance(module, LowRankLinear) else module.factors
            for name, module in model.named_modules()
            if isinstance(module, LowRankLinear | MergedLinear)
        }
    except ValueError as error:
        raise PluginError(f"This adapter has no standard form: {error}.") from error
    if not parts:
        raise PluginError("There is no low-rank part to export.")
    write_lora(model, folder, parts, dropout=dropout)


class Update(Protocol):
    """A low-rank update of one linear."""

    @property
    def down(self) -> Tensor: ...
    @property
    def up(self) -> Tensor: ...
    @property
    def scale(self) -> float: ...


def write_lora(
    model: nn.Module,
    folder: Path,
    parts: Mapping[str, Update],
    *,
    dropout: float,
    magnitudes: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the checkpoint of the updates ``parts`` by name of their linear, as DoRA where there are ``magnitudes``."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    ranks = {name: part.down.shape[0] for name, part in parts.items()}
    alphas = {name: part.scale * ranks[name] for name, part in parts.items()}
    first = next(iter(parts))
    config = LoraConfig(
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",  # type: ignore[union-attr]
        base_model_name_or_path=model.config.name_or_path or None,  # type: ignore[union-attr]
        r=ranks[first],
        lora_alpha=alphas[first],
        rank_pattern={name: rank for name, rank in ranks.items() if rank != ranks[first]},
        alpha_pattern={name: alpha for name, alpha in alphas.items() if alpha != alphas[first]},
        target_modules=sorted(parts),
        lora_dropout=dropout,
        use_dora=magnitudes is not None,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    state = {}
    for name, part in parts.items():
        state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = part.down, part.up
    for name, magnitude in (magnitudes or {}).items():
        state[f"{name}.lora_magnitude_vector"] = magnitude
    plain = {f"base_model.model.{name}": value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(plain, folder / "adapter_model.safetensors", metadata={"format": "pt"})

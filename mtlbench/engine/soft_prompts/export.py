"""A static soft prompt as a standard peft PromptTuning checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn


def export_prompt(model: nn.Module, prompt: Tensor, folder: Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` that ``peft.PeftModel.from_pretrained`` reads.

    peft puts the prompt of an encoder-decoder before its encoder's input alone, as we do, with
    ``num_transformer_submodules=1``. Rows padded on the left are another function there, as peft drops their positions.

    Args:
        prompt: ``[length, width]``.
    """
    from peft import PromptTuningConfig
    from safetensors.torch import save_file

    host: Any = model
    config = PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM" if host.config.is_encoder_decoder else "CAUSAL_LM",
        base_model_name_or_path=host.config.name_or_path or None,
        num_virtual_tokens=prompt.shape[0],
        token_dim=prompt.shape[1],
        num_transformer_submodules=1,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    state = {"prompt_embeddings": prompt.detach().float().cpu().contiguous()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})

"""The merged backbone as an ordinary transformers folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtlbench.errors import PluginError


def save_merged(model: nn.Module, folder: Path) -> None:
    """Write ``model`` for ``transformers.AutoModel...from_pretrained``: low-rank parts merged, its prefix left out.

    Raises:
        PluginError: there is more than the backbone's own weights, such as adapters that were not merged.
    """
    host: Any = model
    with torch.device("meta"):
        plain = set(type(host)(copy.deepcopy(host.config)).state_dict())
    state = {name: value for name, value in host.state_dict().items() if not name.startswith("mtlbench_prefix.")}
    other = sorted(plain ^ set(state))
    if other:
        raise PluginError(
            f"{type(model).__name__} holds more than its backbone, or less: {len(other)} names differ, first "
            f"{other[0]!r}. Merge its adapters before saving it."
        )
    host.save_pretrained(folder, state_dict=state)

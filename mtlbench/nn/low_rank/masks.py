"""Which elements of parameters may differ from zero: for each task the largest of the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class ParameterMasks(nn.Module):
    """Masks of parameters that have one entry for each task; they apply from :meth:`choose` to :meth:`release`.

    They are buffers, so that checkpoints have them. Adapters need none: once training is over, what was masked is zero.

    Args:
        shapes: Of the parameters by name, ``[tasks, ...]``; names may have dots.
        device: Of the masks.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, device: torch.device) -> None:
        super().__init__()
        self._names = {name: name.replace(".", "/") for name in shapes}
        self.on = False
        for name, shape in shapes.items():
            self.register_buffer(self._names[name], torch.ones(shape, dtype=torch.bool, device=device))

    def masked(self, name: str, value: Tensor) -> Tensor:
        """``value`` of the parameter ``name`` where its mask holds, zero elsewhere."""
        return value * self.get_buffer(self._names[name]) if self.on else value

    @torch.no_grad()
    def choose(self, values: Mapping[str, Tensor], *, density: float) -> None:
        """Let each task keep its ``density`` of all elements, those of the largest absolute ``values``."""
        tasks = len(next(iter(values.values())))
        sizes = [value[0].numel() for value in values.values()]
        count = max(1, int(density * sum(sizes)))
        for task in range(tasks):
            flat = torch.cat([value[task].detach().abs().flatten() for value in values.values()])
            kept = torch.zeros_like(flat, dtype=torch.bool).index_fill(0, flat.topk(count).indices, True)
            for name, part in zip(values, torch.split(kept, sizes), strict=True):
                mask = self.get_buffer(self._names[name])
                mask[task].copy_(part.view(mask.shape[1:]))
        self.on = True

    def release(self) -> None:
        """Let the parameters be what they are from here on."""
        self.on = False

    def notes(self) -> Mapping[str, Any]:
        """``active_parameters``: the elements that one task may use."""
        by_task = torch.stack([mask.flatten(1).sum(1) for mask in self.buffers()]).sum(0)
        return {"active_parameters": int(by_task.max())}

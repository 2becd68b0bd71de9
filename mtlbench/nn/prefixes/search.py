"""When PrefixNAS searches: warm-up, updates of the architecture logits, shrinking (DARTS, first order; P-DARTS)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtlbench.nn.prefixes.nas import PrefixNAS

CUTS = ((0.5, 2), (0.75, 4))
"""Share of the search at which the operations are divided by the number; at its end one is left: 12, 6, 3, 1."""
BETAS = (0.5, 0.999)
WEIGHT_DECAY = 1e-3
CLIP = 5.0


@dataclass(frozen=True)
class SearchSchedule:
    """Where the parts of a search lie, in optimizer steps."""

    steps: int
    """The search ends before this step."""
    warmup: int
    """Steps at its start that leave the logits alone."""

    @classmethod
    def of(cls, total_steps: int, *, share: float, warmup_share: float) -> SearchSchedule:
        """A search over ``share`` of all steps (at least one), ``warmup_share`` of it a warm-up."""
        steps = max(1, round(share * total_steps))
        return cls(steps, min(steps - 1, round(warmup_share * steps)))

    def rate(self, reach: float) -> float:
        """Learning rate of the logits with which all their steps together can move one by ``reach``: Adam moves it
        by about the rate in a step, as far as its gradients agree."""
        return reach / max(1, self.steps - self.warmup)

    def searching(self, step: int) -> bool:
        """Whether the logits move at ``step``."""
        return self.warmup <= step < self.steps

    def ramp(self, step: int) -> float:
        """Share of the entropy weight: 0 in the warm-up, then linear to 1 at the last step of the search."""
        return (step - self.warmup + 1) / (self.steps - self.warmup) if self.searching(step) else 0.0

    def keep(self, step: int, operations: int) -> int:
        """Operations a layer may have at ``step``."""
        if step >= self.steps:
            return 1
        return max(1, operations // max((by for share, by in CUTS if step >= share * self.steps), default=1))


class ArchitectureSearch:
    """Drives encoders through their search; give :meth:`before_step` to the training loop, and the search to its
    ``keep``.

    Args:
        encoders: The encoders, one or one per task.
        plan: When.
        search_loss: The loss of the next held-out batch, in which the logits are updated before each weight step
            (alternating, first order); ``None`` leaves them to the optimizer of the weights (joint).
        learning_rate: Of the logits when alternating: Adam with betas 0.5 and 0.999, L2 0.001, gradient norm 5.
        entropy_weight: Weight of the entropy at the end of its ramp.
    """

    def __init__(
        self,
        encoders: Sequence[PrefixNAS],
        plan: SearchSchedule,
        *,
        search_loss: Callable[[], Tensor] | None,
        learning_rate: float,
        entropy_weight: float,
    ) -> None:
        self.encoders, self.plan, self.search_loss = tuple(encoders), plan, search_loss
        self.entropy_weight = entropy_weight
        self._adam = torch.optim.Adam([e.alpha for e in self.encoders], lr=learning_rate, betas=BETAS, fused=True)

    def before_step(self, step: int) -> None:
        """Shrink when it is time, then open or move the logits."""
        searching = self.plan.searching(step)
        for encoder in self.encoders:
            keep = self.plan.keep(step, len(encoder.operations))
            if keep < encoder.size:
                encoder.cut(keep, step=step)
            encoder.entropy_weight = self.entropy_weight * self.plan.ramp(step)
            if self.search_loss is None:
                encoder.alpha_open = searching
        if self.search_loss is not None and searching:
            self._move(self.search_loss)

    def state_dict(self) -> dict[str, Any]:
        """The operations left, what was cut so far, and the optimizer of the logits."""
        return {"encoders": [encoder.search_state() for encoder in self.encoders], "adam": self._adam.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        for encoder, own in zip(self.encoders, state["encoders"], strict=True):
            encoder.load_search_state(own)
        self._adam.load_state_dict(state["adam"])

    def _move(self, search_loss: Callable[[], Tensor]) -> None:
        moving = [encoder for encoder in self.encoders if encoder.size > 1]
        if not moving:
            return
        for encoder in moving:
            encoder.alpha_open = True
        loss = search_loss()
        alphas = [encoder.alpha for encoder in moving]
        # a task that the batch lacks has no gradient beyond the entropy of its mixture
        for alpha, grad in zip(alphas, torch.autograd.grad(loss, alphas, allow_unused=True), strict=True):
            alpha.grad = grad
        for encoder in moving:
            encoder.alpha_open = False
        torch.nn.utils.clip_grad_norm_(alphas, CLIP)
        for alpha in alphas:
            if alpha.grad is not None:
                alpha.grad += WEIGHT_DECAY * torch.where(alpha.isfinite(), alpha, 0.0).detach()
        self._adam.step()
        for alpha in alphas:
            alpha.grad = None

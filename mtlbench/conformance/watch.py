"""What happens to trainable parameters in training: which get gradients, which move."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Watch:
    """Watches every trainable parameter of ``model``, also those that training adds; :meth:`look` after each step."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._first: dict[str, tuple[Tensor, Tensor]] = {}
        self.fed: set[str] = set()
        """Names of parameters that got a gradient other than zero."""
        self.not_finite: set[str] = set()
        """Names of parameters that got a gradient with nan or infinity."""
        self.moved: set[str] = set()
        """Names of parameters whose value was ever another than at first."""
        self.look()

    def look(self) -> None:
        """See what moved, and watch what is new."""
        for name, p in self._model.named_parameters():
            known, value = self._first.get(name, (None, None))
            if known is p and value is not None:
                if not torch.equal(value, p):
                    self.moved.add(name)
            elif p.requires_grad:
                self._first[name] = (p, p.detach().clone())
                p.register_hook(self._hook(name))  # type: ignore[no-untyped-call]

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        # A hook sees every gradient, also one that is taken beside .grad or cleared before a step ends.
        def see(grad: Tensor) -> None:
            if not grad.isfinite().all():
                self.not_finite.add(name)
            elif grad.any():
                self.fed.add(name)

        return see

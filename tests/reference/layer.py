"""What every reference form shares."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mtlbench.api.routing import Routing


class Reference(nn.Module):
    """A frozen linear and, beside it, ``scale * term(dropout(x))``.

    Args:
        base: The frozen linear.
        parameters: Initial values of the trainable parameters by name.
        scale: Factor on the term.
        routing: Gives the task ids of the rows; needed where the term depends on the task.
        dropout: On the input of the term, in training mode.
    """

    def __init__(
        self,
        base: nn.Linear,
        parameters: Mapping[str, Tensor],
        *,
        scale: float = 1.0,
        routing: Routing | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.base, self.scale, self.routing = base, scale, routing
        self.dropout = nn.Dropout(dropout)
        for name, value in parameters.items():
            parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value.clone())
            self.register_parameter(name, parameter)

    @property
    def weight(self) -> Tensor:  # T5 reads it
        return self.base.weight

    def tasks(self, x: Tensor) -> Tensor:
        """Task ids ``[rows]``."""
        if self.routing is None:
            raise RuntimeError("this form needs a routing")
        return self.routing.ids(x.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, length, in]`` to ``[rows, length, out]``."""
        y: Tensor = self.base(x)
        adapter_dtype = next(self.parameters(recurse=False)).dtype  # peft casts to it, even under autocast
        return (y + self.scale * self.term(x.to(adapter_dtype))).to(y.dtype)

    def term(self, x: Tensor) -> Tensor:
        """The trainable term, before ``scale`` and with its dropout."""
        raise NotImplementedError

"""FLOPs of a training step: analytically for the backbone alone, and counted for the method as it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from mtlbench.api.routing import Routing
from mtlbench.backbones.backbone import Backbone
from mtlbench.compat import processor_attention
from mtlbench.training.batches import Batch
from mtlbench.training.gradients import Gradients
from mtlbench.training.loss import row_losses


def counted_flops(step: Callable[[], object]) -> int:
    """FLOPs of matrix products and attention in ``step``, including backward, as torch dispatches them."""
    counter = FlopCounterMode(display=False, custom_mapping=_cpu_attention())
    aten = torch.ops.aten
    for in_place, known in ((aten.addmm_, aten.addmm), (aten.baddbmm_, aten.baddbmm)):
        counter.flop_registry[in_place] = flop_registry[known]
    counter.mod_tracker = _Whole()  # type: ignore[assignment]
    with counter:
        step()
    return int(counter.get_total_flops())


class _Whole:
    """Counts for the model as a whole: torch's module tracker hooks gradients and does not support autograd.grad."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        return

    def __exit__(self, *error: object) -> None:
        return


def analytic_flops(backbone: Backbone, batch: Batch) -> int:
    """FLOPs of forward and backward through the frozen backbone: two per weight and token in each direction.

    Attention includes both products in full, two forward and four backward; logits are computed at labels only. The
    cost of a method is not included: the ratio of counted to analytic FLOPs shows it.
    """
    model = backbone.fresh()
    head = model.get_output_embeddings()  # type: ignore[operator]
    linears: list[int] = []

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        rows = output.numel() // output.shape[-1]
        linears.append(2 * rows * sum(p.numel() for p in module.parameters() if p.dim() == 2))

    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.register_forward_hook(count)
    routing = Routing()
    with torch.no_grad(), routing.of(batch.tasks):
        row_losses(model, batch, routing)
    logits = 2 * len(batch.label_ids) * head.weight.numel()
    return int(2 * (sum(linears) + logits) + 3 * _attention(backbone, batch))


def gradient_step(gradients: Gradients, batch: Batch, model: nn.Module) -> Callable[[], None]:
    """One forward and backward that discards the gradients."""

    def step() -> None:
        gradients.step([batch])
        for p in model.parameters():
            p.grad = None

    return step


def _attention(backbone: Backbone, batch: Batch) -> int:
    """FLOPs of both attention products in one forward."""
    config: Any = backbone.model.config
    rows, length = batch.inputs["input_ids"].shape
    if backbone.architecture == "causal":
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(4 * rows * length**2 * config.num_attention_heads * size * config.num_hidden_layers)
    answer = batch.inputs["decoder_input_ids"].shape[1]
    width = config.num_heads * config.d_kv
    pairs = config.num_layers * length**2 + config.num_decoder_layers * (answer**2 + answer * length)
    return int(4 * rows * width * pairs)


def _cpu_attention() -> dict[Any, Any]:
    """FLOP formulas of the CPU attention kernel, which torch's counter lacks; arguments are shapes."""
    kernel, kernel_backward = processor_attention()

    def forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    def backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]

    return {kernel: forward, kernel_backward: backward}

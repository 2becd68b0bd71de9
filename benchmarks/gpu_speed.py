"""Speed on a device: tokens a second, share of the measured matrix rate, memory against the forecast."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from mtlbench.api.cell import Cell
from mtlbench.backbones.backbone import Backbone, backbone_size
from mtlbench.backbones.machine import is_out_of_memory, probe
from mtlbench.errors import RequestError
from mtlbench.forecasting.memory import ParameterCounts
from mtlbench.forecasting.time import TokenForecast, forecast_memory
from mtlbench.measuring.models import random_backbone
from mtlbench.measuring.request import MeasureRow
from mtlbench.measuring.training import MeasuredMethod, measure_training
from mtlbench.planning.settings import build, read_settings, split_methods

if TYPE_CHECKING:
    from gpu import Sheet

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """A backbone with random weights and the rows that it is timed with."""

    config: Mapping[str, Any]
    batch_size: int
    shortest: int
    longest: int
    methods: tuple[str, ...]
    seconds: float
    """Expected of a row, until one was measured."""
    tasks: int = 8


_GLUE = ("base", "lora", "mtl_lora[target=all]", "moelora[target=all]", "multilora", "peml", "prefix", "ta_lora")
_FIGURE_4 = tuple(
    word
    for rank in (32, 160, 96, 64, 128)
    for word in (f"lora[rank={rank}]", f"multilora[modules={rank // 32},rank=32]", f"peml[rank={rank}]")
)
"""Of PEML; the ends of the range first."""
SHAPES: Mapping[str, Shape] = {
    "135M at GLUE lengths": Shape(
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
        batch_size=32,
        shortest=16,
        longest=128,
        methods=_GLUE,
        seconds=6,
    ),
    "1B at GLUE lengths": Shape(
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        },
        batch_size=32,
        shortest=16,
        longest=128,
        methods=_GLUE,
        seconds=8,
    ),
    "LLaMA-2-7B, figure 4 of PEML": Shape(
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
        batch_size=4,
        shortest=1024,
        longest=1024,
        methods=_FIGURE_4,
        seconds=15,
    ),
}
ORDER = ("LLaMA-2-7B, figure 4 of PEML", "1B at GLUE lengths", "135M at GLUE lengths")
TOY: Mapping[str, Shape] = {
    "toy": Shape(
        {
            "vocab_size": 128,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        batch_size=4,
        shortest=8,
        longest=16,
        methods=("base", "lora", "peml[prefix_length=4]"),
        seconds=2,
        tasks=2,
    )
}


def measure(sheet: Sheet, device: torch.device, *, toy: bool) -> None:
    """A table of all shapes, each with the methods in turn."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    rates = [probe(device) for _ in range(5)]
    rate = max(m.float32_gflops if dtype is torch.float32 else m.bfloat16_gflops for m in rates) * 1e9
    sheet.table(
        "Speed and memory",
        f"Random weights, {str(dtype).removeprefix('torch.')}, the real training loop. Matrix rate measured now: "
        f"{rate / 1e12:.3g} TFLOP/s. MFU: FLOP of the frozen backbone, forward and to its input, a second, as a share "
        "of that rate; a method's own FLOP are not among them. Tokens are without padding. Memory: the most that torch "
        "allocated while training, on an accelerator, and what `plan --forecast` would say of weights, training and "
        "activations.",
        (
            "shape",
            "method",
            "trained",
            "tokens/s",
            "step ms",
            "MFU",
            "peak GiB",
            "forecast GiB",
            "peak / forecast",
            "s",
        ),
    )
    for name, shape in TOY.items() if toy else [(name, SHAPES[name]) for name in ORDER]:
        sheet.step(
            name, partial(_shape, sheet, name, shape, device=device, dtype=dtype, rate=rate), expected=shape.seconds
        )


def _shape(sheet: Sheet, name: str, shape: Shape, *, device: torch.device, dtype: torch.dtype, rate: float) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**shape.config, max_position_embeddings=2048)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        if (weights := _weights(shape) * dtype.itemsize) > 0.8 * total:
            sheet.row(name, f"not run: the weights take {weights / GIB:.0f} of {total / GIB:.0f} GiB")
            return
    backbone = random_backbone(
        name, config, AutoModelForCausalLM, "causal", dtype=dtype, device=device, attention="sdpa"
    )
    expected = shape.seconds
    for words in shape.methods:
        begun = time.monotonic()
        what = f"{name}: {words}"
        row = partial(_row, sheet, name, shape, words, backbone=backbone, device=device, dtype=dtype, rate=rate)
        if sheet.step(what, row, expected=expected):
            expected = 1.3 * (time.monotonic() - begun)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _weights(shape: Shape) -> int:
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        return backbone_size(AutoModelForCausalLM.from_config(LlamaConfig(**shape.config))).parameters


def _row(
    sheet: Sheet,
    name: str,
    shape: Shape,
    words: str,
    *,
    backbone: Backbone,
    device: torch.device,
    dtype: torch.dtype,
    rate: float,
) -> None:
    begun = time.perf_counter()
    ((method, raw),) = split_methods(words)
    settings = read_settings(method, raw)
    toy = device.type == "cpu"
    row = MeasureRow(
        method=method,
        settings=settings,
        variant=words,
        model=name,
        tasks=shape.tasks,
        batch_size=shape.batch_size,
        shortest=shape.shortest,
        longest=shape.longest,
        steps=3 if toy else 12,
        warmup=1 if toy else 4,
        serving=(1,),
        parts=("training",),
        dtype=str(dtype).removeprefix("torch."),
        checkpointing=False,
        device=str(device),
        threads=None,
    )
    subject = MeasuredMethod(
        row=row,
        method=build(method, settings),
        backbone=backbone,
        device=device,
        autocast=None if dtype is torch.float32 else dtype,
    )
    try:
        measured, _ = measure_training(subject)
    except RequestError as error:
        sheet.row(name, words, f"refused: {error}")
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        sheet.row(name, words, "out of memory")
        return
    expected = _forecast(subject, measured["trainable_parameters"], device=device, dtype=dtype)
    if not measured["trains"]:
        sheet.row(name, words, "nothing")
        return
    seconds = measured["step_seconds"]["p50"]
    peak = measured["memory"]["allocated"]
    sheet.row(
        name,
        words,
        f"{measured['trainable_parameters']:,}",
        f"{measured['tokens_per_second']:,.0f}",
        f"{1000 * seconds:.1f}",
        f"{measured['flops_backbone'] / seconds / rate:.2f}",
        *_memory(peak, expected),
        f"{time.perf_counter() - begun:.1f}",
    )


def _memory(peak: int | None, expected: int) -> Iterator[str]:
    yield "–" if peak is None else f"{peak / GIB:.2f}"
    yield f"{expected / GIB:.2g}" if expected < GIB else f"{expected / GIB:.2f}"
    yield "–" if peak is None else f"{peak / expected:.2f}"


def _forecast(subject: MeasuredMethod, training: int, *, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes, as ``plan --forecast`` reckons them of the longest row."""
    row, size = subject.row, backbone_size(subject.backbone.model)
    counts = ParameterCounts(
        backbone=size.parameters, training=training, dropped=0, backbone_size=size, architecture="causal"
    )
    cell = Cell(
        method=row.method, settings=row.settings, tasks=("a",), model=row.model, protocol=subject.protocol, seed=0
    )
    tokens = TokenForecast(
        steps=row.steps,
        train_tokens=0,
        eval_rows=0,
        eval_tokens=0,
        longest=row.longest,
        tasks_per_step=1.0,
        largest_share=1.0,
        checks={},
    )
    return forecast_memory(
        cell, counts, tokens, bytes_each=dtype.itemsize, rest=0, device="cuda" if device.type == "cuda" else "cpu"
    ).total

"""Correctness on a device: each method's step against the processor, merging, reading back, resuming, HFLM."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mtlbench.api.cell import Protocol
from mtlbench.api.method import Method, Setup
from mtlbench.conformance.rows import draw_rows
from mtlbench.conformance.toys import PAD, setup_for, tiny_causal, toy_rows
from mtlbench.errors import MtlbenchError
from mtlbench.files.stop_request import StopRequest
from mtlbench.planning.settings import build
from mtlbench.plugins import load_method, offers
from mtlbench.training.batches import Collator
from mtlbench.training.checkpoints.checkpoint import CheckpointStore
from mtlbench.training.checkpoints.recovery import CheckpointPolicy
from mtlbench.training.checkpoints.state import load_adapter, save_adapter, saved_names, shrink, trainable_state
from mtlbench.training.gradients import Gradients
from mtlbench.training.loop import Loop, TrainingJob
from mtlbench.training.splits import carve

if TYPE_CHECKING:
    from gpu import Sheet

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
FLOAT32 = 1e-4
"""Largest difference of losses, gradients and logits in float32, as a share of the largest."""
BFLOAT16 = 2.0
"""How many times as far from float32 as the processor's bfloat16 the device's may be, with 0.02 on top."""
STEPS, CRASH = 8, 5
FEW = ("lora", "mtl_lora", "peml", "prefix")
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}


class Crash(Exception):
    """Stands for the end of the process."""


def check(sheet: Sheet, device: torch.device, *, methods: Sequence[str], toy: bool) -> None:
    """The table of methods, and the row of HFLM."""
    check_methods(sheet, device, methods or (FEW if toy else own_methods()))
    sheet.step("HFLM", lambda: _hflm(sheet, device), expected=10.0)


def check_methods(sheet: Sheet, device: torch.device, methods: Sequence[str]) -> None:
    """The table, a row for each method."""
    sheet.table(
        "Correctness",
        f"A Llama of two layers, width {SIZES['hidden_size']}. float32: largest difference of loss and gradients from "
        f"the processor's, as a share of the largest (bound {FLOAT32:g}). bf16: distance of the gradient from float32, "
        f"here / on the processor (bound {BFLOAT16:g} times, plus 0.02). merged: largest change of the logits by "
        "`finish`. read back: the saved adapter gives the same logits, bit for bit. resumed: after a crash, parameters "
        "bitwise those of the undisturbed run, where the method promises it.",
        ("method", "float32", "bf16", "merged", "read back", "resumed", "held", "s"),
    )
    for name in methods:
        sheet.step(name, partial(_method, sheet, name, device), expected=3.0)


def own_methods() -> list[str]:
    """Methods that are implemented here, and peft's LoRA."""
    names = []
    for name in offers("methods"):
        try:
            method = load_method(name)
        except MtlbenchError:  # peft is not installed
            continue
        if name not in ("base",) and (not method.__module__.endswith("peft_tuners") or name == "peft"):
            names.append(name)
    return names


@dataclass(frozen=True)
class _Case:
    model: nn.Module
    method: Method
    setup: Setup
    device: torch.device

    def logits(self) -> Tensor:
        """Of rows of three tasks, in evaluation mode."""
        batch = _collator(self.device).padded(draw_rows((2, 0, 1, 1), lengths=[8, 5, 7, 8]))
        self.model.eval()
        with torch.no_grad(), self.setup.routing.of(batch.tasks, batch.contexts):
            logits: Tensor = self.model(**batch.inputs, use_cache=False).logits
        return logits.float()

    def gradients(self, autocast: torch.dtype | None) -> tuple[float, dict[str, Tensor]]:
        """The loss and the gradients of one batch without dropout, on the processor."""
        batch = _collator(self.device).padded(draw_rows((2, 0, 1, 1), lengths=[8, 5, 7, 8]))
        self.model.eval()
        routing = self.setup.routing
        loss, _, _ = Gradients(model=self.model, method=self.method, routing=routing, autocast=autocast).step([batch])
        found = {n: p.grad.float().cpu() for n, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        return float(loss), found


def _case(name: str, device: torch.device, *, dtype: torch.dtype = torch.float32, noise: float = 0.02) -> _Case:
    """A method on the same backbone and with the same parameters, whatever the device."""
    settings: dict[str, Any] = dict(load_method(name).example_settings)
    method = build(name, settings)
    model = tiny_causal(0, initializer_range=0.05, **SIZES).to(device=device, dtype=dtype)
    setup = setup_for(model, total_steps=STEPS)
    if (reason := method.refuse(setup)) is not None:
        raise RuntimeError(f"refused: {reason}")
    method.attach(model, setup)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=draw).to(p), alpha=noise)
    return _Case(model, method, setup, device)


def _collator(device: torch.device) -> Collator:
    return Collator("causal", PAD, PAD, device)


def _method(sheet: Sheet, name: str, device: torch.device) -> None:
    begun = time.perf_counter()
    wanted, gradients = _case(name, CPU).gradients(None)
    loss, found = _case(name, device).gradients(None)
    largest = max((float(g.abs().max()) for g in gradients.values()), default=1.0)
    same = gradients.keys() == found.keys()
    apart = (
        max((float((found[n] - g).abs().max()) for n, g in gradients.items()), default=0.0) / largest if same else 9.0
    )
    apart = max(apart, abs(loss - wanted) / max(abs(wanted), 1e-6))
    narrow = [
        _distance(gradients, _case(name, place, dtype=torch.bfloat16).gradients(torch.bfloat16)[1])
        for place in (device, CPU)
    ]
    merged = _merged(name, device)
    read = _read_back(name, device)
    resumed = _resumed(name, device)
    held = (
        apart <= FLOAT32
        and narrow[0] <= BFLOAT16 * narrow[1] + 0.02
        and (merged is None or merged <= FLOAT32)
        and read
        and resumed is not False
    )
    if not held:
        sheet.failed.append(name)
    sheet.row(
        name,
        f"{apart:.1e}",
        f"{narrow[0]:.3f} / {narrow[1]:.3f}",
        "–" if merged is None else f"{merged:.1e}",
        "yes" if read else "NO",
        {True: "yes", False: "NO", None: "–"}[resumed],
        "yes" if held else "NO",
        f"{time.perf_counter() - begun:.1f}",
    )


def _distance(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Norm of the difference of all gradients, as a share of the norm of ``wanted``."""
    if wanted.keys() != found.keys():
        return float("inf")
    squares = [(float((found[n] - g).square().sum()), float(g.square().sum())) for n, g in wanted.items()]
    return float((sum(apart for apart, _ in squares) / max(sum(whole for _, whole in squares), 1e-30)) ** 0.5)


def _merged(name: str, device: torch.device) -> float | None:
    """Largest change of the logits by finishing, as a share; ``None`` where a search is decided then."""
    case = _case(name, device)
    if case.method.searches:
        return None
    before = case.logits()
    case.method.finish(case.model)
    return float((case.logits() - before).abs().max() / before.abs().max())


def _read_back(name: str, device: torch.device) -> bool:
    case, again = _case(name, device), _case(name, device, noise=0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        save_adapter(case.model, path, {})
        shrink(again.model, saved_names(path))
        load_adapter(again.model, path)
    return torch.equal(case.logits(), again.logits())


def _resumed(name: str, device: torch.device) -> bool | None:
    """Whether a resumed run ends bitwise like an undisturbed one; ``None`` where the method does not promise it."""
    if not _case(name, CPU).method.resumes():
        return None
    with tempfile.TemporaryDirectory() as folder:
        whole = _trained(name, device, None)
        with suppress(Crash):
            _trained(name, device, Path(folder), crash=True)
        resumed = _trained(name, device, Path(folder))
    return whole.keys() == resumed.keys() and all(torch.equal(whole[n], resumed[n]) for n in whole)


def _trained(name: str, device: torch.device, folder: Path | None, *, crash: bool = False) -> dict[str, Tensor]:
    """The state after training, with a checkpoint after every step where there is a ``folder``."""
    case = _case(name, device)
    files = None if folder is None else CheckpointStore(folder, identity={"cell": name})
    recovery = None if files is None else CheckpointPolicy(files, stop=StopRequest(), every_s=0.0)

    def stepped(step: int, losses: Tensor, tasks: Tensor) -> None:
        if crash and step + 1 == CRASH:
            raise Crash

    job = TrainingJob(
        model=case.model,
        method=case.method,
        splits=carve(toy_rows(tasks=3, rows=40), held_out=0.2, seed=0),
        protocol=Protocol(steps=STEPS, batch_size=12, learning_rate=1e-3, evals_per_run=2, patience=9),
        tasks=3,
        routing=case.setup.routing,
        collator=_collator(device),
        seed=0,
    )
    case.method.fit(case.model, Loop(job, on_step=stepped, recovery=recovery))
    return dict(trainable_state(case.model))


def _hflm(sheet: Sheet, device: torch.device) -> None:
    """Scores of a method through our model class against lm-eval's own."""
    if importlib.util.find_spec("lm_eval") is None:
        sheet.row("HFLM", "not run: lm-eval is not installed")
        return
    begun = time.perf_counter()
    sys.path[:0] = [str(ROOT / "tests" / "helpers")]
    from lm_eval.models.huggingface import HFLM
    from method_scoring import LONGEST, attached, requests_of, scorer
    from tiny_backbones import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer(architecture="causal")
    model = tiny_model(architecture="causal", vocabulary=len(tokenizer)).requires_grad_(False).to(device)
    model, _ = attached("lora", model)
    theirs = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        device=str(device),
        batch_size=4,
        max_length=LONGEST,
    )
    requests = requests_of(seed=1)[:40]
    pairs = zip(
        scorer(model, tokenizer).loglikelihood(requests),
        theirs.loglikelihood(requests, disable_tqdm=True),
        strict=True,
    )
    apart = max(abs(ours - wanted) / max(1.0, abs(wanted)) for (ours, _), (wanted, _) in pairs)
    held = apart <= FLOAT32
    if not held:
        sheet.failed.append("HFLM")
    seconds = time.perf_counter() - begun
    sheet.row(
        "lora, scored as HFLM does", f"{apart:.1e}", "–", "–", "–", "–", "yes" if held else "NO", f"{seconds:.1f}"
    )

"""Checks of the forward pass: at the start, with padding, with mixed tasks, with routing, under beam search."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.conformance.findings import TOLERANCE, NotApplicable, PromiseBroken, expect_same, gap
from mtlbench.conformance.fixture import SAMPLE, Fixture
from mtlbench.conformance.rows import batch_of, draw_rows, padded
from mtlbench.conformance.toys import PAD
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Collator
from mtlbench.training.forms import form_of
from mtlbench.training.gradients import Gradients

BEAMS = 3
NEW_TOKENS = 5


def identity(fixture: Fixture) -> None:
    """Before the first step the logits are the backbone's."""
    if not fixture.method.identity_at_start:
        raise NotApplicable("the method sets identity_at_start = False")
    case = fixture.attached(noise=0.0)
    batch, routing = fixture.batch(SAMPLE), case.setup.routing
    stock = label_logits(case.backbone.fresh(), batch, Routing())
    expect_same(stock, label_logits(case.model, batch, routing), "the logits before the first step and the stock's")


def padding(fixture: Fixture) -> None:
    """A row gives the same logits alone and in a batch padded on either side."""
    case = fixture.attached()
    rows = draw_rows([1, 1, 1], lengths=[5, 12, 8], answers=[3, 1, 2])
    alone = torch.cat([_real_logits(fixture, case.model, case.setup.routing, [row], "right") for row in rows])
    for side in ("right", "left"):
        together = _real_logits(fixture, case.model, case.setup.routing, rows, side)
        expect_same(alone, together, f"logits of rows alone and of the same rows in a batch padded on the {side}")


def packing(fixture: Fixture) -> None:
    """Rows laid end to end have the losses of padded ones, unless layers read whole rows."""
    if fixture.method.reads_rows:
        raise NotApplicable("the method says reads_rows = True")
    case = fixture.attached()
    rows = draw_rows([2, 0, 1, 1, 0], lengths=[5, 12, 8, 3, 9], answers=[3, 1, 2, 2, 1])
    gradients = Gradients(model=case.model, method=fixture.method, routing=case.setup.routing, autocast=None)
    collator = Collator(fixture.architecture, PAD, PAD, torch.device("cpu"))
    form = form_of(gradients, collator, rows, longest=64)
    if form.padded_because is not None:
        raise PromiseBroken(f"rows have to be padded: {form.padded_because}")


def mixed_tasks(fixture: Fixture) -> None:
    """A batch of several tasks gives the same logits as one batch per task."""
    case = fixture.attached()
    tasks = [2, 0, 1, 1, 0, 2]
    rows = draw_rows(tasks, lengths=[8] * len(tasks))

    def logits(members: list[TokenRow]) -> Tensor:
        batch = batch_of(members, fixture.architecture)
        flat = label_logits(case.model, batch, case.setup.routing)
        return flat.view(len(members), -1, flat.shape[-1])

    mixed = logits(rows)
    for task in sorted(set(tasks)):
        at = [i for i, t in enumerate(tasks) if t == task]
        alone = logits([rows[i] for i in at])
        expect_same(alone, mixed[at], f"logits of task {task} in a batch of its own and in a mixed batch")


def routing(fixture: Fixture) -> None:
    """Other task ids change a task-routed method, and only such a method."""
    case = fixture.attached()
    ids = case.setup.routing
    batch = fixture.batch(SAMPLE)
    other = dataclasses.replace(batch, tasks=(batch.tasks + 1) % len(case.setup.tasks))
    difference = gap(label_logits(case.model, batch, ids), label_logits(case.model, other, ids))
    if fixture.method.task_routed and difference <= TOLERANCE:
        raise PromiseBroken("task_routed = True, but other task ids give the same logits")
    if not fixture.method.task_routed and difference > TOLERANCE:
        raise PromiseBroken(
            f"task_routed = False, but other task ids change logits by {100 * difference:.2g} % of the largest"
        )


@torch.no_grad()
def beams(fixture: Fixture) -> None:
    """Beam search gives every token the same score as a plain forward of its row."""
    case = fixture.attached()
    host: Any = case.model
    rows = draw_rows([0, 1, 2], lengths=[6, 6, 6])
    prompts, tasks = torch.tensor([row.context for row in rows]), torch.tensor([row.task for row in rows])
    with case.setup.routing.of(tasks):
        made = host.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            num_beams=BEAMS,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=PAD,
            return_dict_in_generate=True,
            output_scores=True,
        )
    searched = host.compute_transition_scores(made.sequences, made.scores, made.beam_indices)
    for row, sequence in enumerate(made.sequences):
        contexts = None if fixture.architecture == "seq2seq" else torch.tensor([prompts.shape[1]])
        with case.setup.routing.of(tasks[row : row + 1], contexts):
            alone = _logprobs(case.model, prompts[row], sequence)
        expect_same(alone, searched[row], f"log-probabilities of row {row}, task {row}, alone and under beam search")


@torch.no_grad()
def _real_logits(fixture: Fixture, model: nn.Module, ids: Routing, rows: list[TokenRow], side: Any) -> Tensor:
    """Logits ``[tokens, vocabulary]`` of all tokens except padding, row by row."""
    inputs, real = padded(rows, architecture=fixture.architecture, side=side)
    with ids.of(torch.tensor([row.task for row in rows])):
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[real]


def _logprobs(model: nn.Module, prompt: Tensor, sequence: Tensor) -> Tensor:
    """Log-probabilities of the generated tokens ``[new]`` from one forward without a cache."""
    decoder = model.config.is_encoder_decoder  # type: ignore[union-attr]
    inputs = {"input_ids": prompt, "decoder_input_ids": sequence[:-1]} if decoder else {"input_ids": sequence[:-1]}
    logits: Tensor = model(**{name: ids.unsqueeze(0) for name, ids in inputs.items()}, use_cache=False).logits[0]
    prompt_length = 1 if decoder else len(prompt)
    scores = logits[prompt_length - 1 :].float().log_softmax(-1)
    return scores.gather(1, sequence[prompt_length:, None]).squeeze(1)

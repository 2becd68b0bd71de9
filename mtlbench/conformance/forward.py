"""Checks of what a method computes: at the start, for each row by itself, for each task, under beams."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.conformance.findings import TOLERANCE, Broken, NotApplicable, expect_same, gap
from mtlbench.conformance.lab import Lab
from mtlbench.conformance.life import SAMPLE
from mtlbench.conformance.rows import batch_of, draw_rows, padded
from mtlbench.conformance.toys import PAD
from mtlbench.tokens.encode import TokenRow

BEAMS = 3
NEW_TOKENS = 5


def identity(lab: Lab) -> None:
    """Before the first step the method is the backbone."""
    if not lab.method.identity_at_start:
        raise NotApplicable("the method says identity_at_start = False")
    specimen = lab.attached(noise=0.0)
    batch, routing = lab.batch(SAMPLE), specimen.setup.routing
    stock = label_logits(specimen.backbone.fresh(), batch, Routing())
    expect_same(stock, label_logits(specimen.model, batch, routing), "the logits before the first step and the stock's")


def padding(lab: Lab) -> None:
    """A row alone equals the row among others, padded on either side."""
    specimen = lab.attached()
    rows = draw_rows([1, 1, 1], lengths=[5, 12, 8], answers=[3, 1, 2])
    alone = torch.cat([_real_logits(lab, specimen.model, specimen.setup.routing, [row], "right") for row in rows])
    for side in ("right", "left"):
        together = _real_logits(lab, specimen.model, specimen.setup.routing, rows, side)
        expect_same(alone, together, f"logits of rows alone and of the same rows in a batch padded on the {side}")


def mixed_tasks(lab: Lab) -> None:
    """A batch of several tasks equals one batch per task."""
    specimen = lab.attached()
    tasks = [2, 0, 1, 1, 0, 2]
    rows = draw_rows(tasks, lengths=[8] * len(tasks))

    def logits(members: list[TokenRow]) -> Tensor:
        batch = batch_of(members, lab.architecture)
        found = label_logits(specimen.model, batch, specimen.setup.routing)
        return found.view(len(members), -1, found.shape[-1])

    mixed = logits(rows)
    for task in sorted(set(tasks)):
        at = [i for i, t in enumerate(tasks) if t == task]
        alone = logits([rows[i] for i in at])
        expect_same(alone, mixed[at], f"logits of task {task} in a batch of its own and in a mixed batch")


def routing(lab: Lab) -> None:
    """Other task ids change a task-routed method, and only such a method."""
    specimen = lab.attached()
    ids = specimen.setup.routing
    batch = lab.batch(SAMPLE)
    other = dataclasses.replace(batch, tasks=(batch.tasks + 1) % len(specimen.setup.tasks))
    found = gap(label_logits(specimen.model, batch, ids), label_logits(specimen.model, other, ids))
    if lab.method.task_routed and found <= TOLERANCE:
        raise Broken("task_routed = True, but other task ids give the same logits")
    if not lab.method.task_routed and found > TOLERANCE:
        raise Broken(f"task_routed = False, but other task ids change logits by {100 * found:.2g} % of the largest")


@torch.no_grad()
def beams(lab: Lab) -> None:
    """Beam search scores every token as a plain forward of its row alone does."""
    specimen = lab.attached()
    host: Any = specimen.model
    rows = draw_rows([0, 1, 2], lengths=[6, 6, 6])
    prompts, tasks = torch.tensor([row.context for row in rows]), torch.tensor([row.task for row in rows])
    with specimen.setup.routing.of(tasks):
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
        contexts = None if lab.architecture == "seq2seq" else torch.tensor([prompts.shape[1]])
        with specimen.setup.routing.of(tasks[row : row + 1], contexts):
            alone = _logprobs(specimen.model, prompts[row], sequence)
        expect_same(alone, searched[row], f"log-probabilities of row {row}, task {row}, alone and under beam search")


@torch.no_grad()
def _real_logits(lab: Lab, model: nn.Module, ids: Routing, rows: list[TokenRow], side: Any) -> Tensor:
    """Logits ``[tokens, vocabulary]`` of all tokens but padding, row after row."""
    inputs, real = padded(rows, architecture=lab.architecture, side=side)
    with ids.of(torch.tensor([row.task for row in rows])):
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[real]


def _logprobs(model: nn.Module, prompt: Tensor, sequence: Tensor) -> Tensor:
    """Log-probabilities of the generated tokens ``[new]`` from one forward without a cache."""
    decoder = model.config.is_encoder_decoder  # type: ignore[union-attr]
    inputs = {"input_ids": prompt, "decoder_input_ids": sequence[:-1]} if decoder else {"input_ids": sequence[:-1]}
    logits: Tensor = model(**{name: ids.unsqueeze(0) for name, ids in inputs.items()}, use_cache=False).logits[0]
    given = 1 if decoder else len(prompt)
    scores = logits[given - 1 :].float().log_softmax(-1)
    return scores.gather(1, sequence[given:, None]).squeeze(1)

"""lm-eval's model class over a backbone with per-row task routing: batched by length, shared rows, few logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from torch import Tensor, nn

from mtlbench.engine.encode import Tokens, encode_pairs, fit
from mtlbench.engine.generate import generate
from mtlbench.engine.head import picked_rows
from mtlbench.engine.routing import Routing
from mtlbench.engine.sharing import SharedRow, Wish, share_rows

LOGITS_PER_BATCH = 2**26
"""Most logits computed at once: 256 MiB in float32."""


class RoutedLM(LM):  # type: ignore[misc]
    """Scores lm-eval requests; ``request.task_name`` chooses the task id of its row.

    Encoder-decoder backbones run as ``model.get_encoder()`` and then ``model(encoder_outputs=...)``, each inside its
    own ``routing.of``: one encoder row per distinct prompt, one decoder row per distinct beginning of an answer.

    ``token_budget`` bounds rows x padded length of a batch. The model must be in evaluation mode.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        architecture: str,
        routing: Routing,
        task_ids: Mapping[str, int],
        max_length: int,
        token_budget: int,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.architecture = model, tokenizer, architecture
        self.routing, self.task_ids = routing, task_ids
        self.max_length, self.token_budget = max_length, token_budget
        self._device = next(model.parameters()).device
        self._vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """``(log-likelihood in nats, whether greedy decoding gives the answer)`` in the order of ``requests``."""
        rows = share_rows(self._wishes(requests))
        score = self._score_causal if self.architecture == "causal" else self._score_seq2seq
        numbers: list[int] = []
        lengths: list[int] = []
        found: list[Tensor] = []
        with torch.no_grad():
            for batch in self._batches(rows):
                wishes = [wish for row in batch for wish in row.wishes]
                numbers += [wish.number for wish in wishes]
                lengths += [len(wish.answer) for wish in wishes]
                found.append(score(batch))
        if not found:
            return []
        # The only transfer to the host.
        logprobs, greedy = torch.cat(found, dim=1).cpu().numpy().astype(np.float64)
        starts = np.cumsum([0, *lengths[:-1]])
        sums, hits = np.add.reduceat(logprobs, starts), np.minimum.reduceat(greedy, starts)
        order = np.argsort(numbers)
        return [(float(sums[i]), bool(hits[i])) for i in order]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Not supported: no suite scores whole texts."""
        raise NotImplementedError(
            "tasks of output type loglikelihood_rolling (perplexity of whole texts) are unsupported"
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy continuations up to the first stop string, in the order of ``requests``."""
        return generate(
            self.model,
            self.tokenizer,
            [(request.args[0], request.args[1], self.task_ids[request.task_name]) for request in requests],
            architecture=self.architecture,
            routing=self.routing,
            max_length=self.max_length,
            token_budget=self.token_budget,
        )

    def _wishes(self, requests: Sequence[Instance]) -> list[Wish]:
        encoded = encode_pairs(self.tokenizer, [r.args for r in requests], architecture=self.architecture)
        wishes: list[Wish] = []
        for number, (request, (whole, answer)) in enumerate(zip(requests, encoded, strict=True)):
            context, answer = fit(whole, answer, architecture=self.architecture, max_length=self.max_length)
            task = self.task_ids[request.task_name]
            if self.architecture == "causal":
                wishes.append(Wish(number, (task, ()), (*context, *answer[:-1]), answer))
            else:
                start = int(self.model.config.decoder_start_token_id)  # type: ignore[union-attr, arg-type]
                wishes.append(Wish(number, (task, context), (start, *answer[:-1]), answer))
        return wishes

    def _batches(self, rows: list[SharedRow]) -> Iterator[list[SharedRow]]:
        """Rows of like length within the token budget and the logit limit, longest first: memory peaks early."""
        rows = sorted(rows, key=lambda r: (len(r.group[1]), r.group[1], len(r.tokens)), reverse=True)
        picks = LOGITS_PER_BATCH // self._vocabulary
        batch: list[SharedRow] = []
        width = picked = 0
        for row in rows:
            needed = len(row.tokens) - min(wish.first for wish in row.wishes)
            wider = max(width, len(row.tokens) + len(row.group[1]))
            if batch and (wider * (len(batch) + 1) > self.token_budget or picked + needed > picks):
                yield batch
                batch, picked, wider = [], 0, len(row.tokens) + len(row.group[1])
            batch.append(row)
            width, picked = wider, picked + needed
        if batch:
            yield batch

    def _score_causal(self, batch: list[SharedRow]) -> Tensor:
        ids, mask = self._pad([row.tokens for row in batch])
        positions = torch.arange(ids.shape[1], device=self._device).expand_as(ids)
        index, picks, answers = self._terms(batch, width=ids.shape[1])
        with self.routing.of(self._tensor([row.group[0] for row in batch])), picked_rows(self.model, index):
            logits = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        return _score(logits, picks, answers)

    def _score_seq2seq(self, batch: list[SharedRow]) -> Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        groups = {group: i for i, group in enumerate(dict.fromkeys(row.group for row in batch))}
        prompts, prompt_mask = self._pad([context for _, context in groups])
        with self.routing.of(self._tensor([task for task, _ in groups])):
            encoder = self.model.get_encoder()  # type: ignore[operator]
            hidden = encoder(input_ids=prompts, attention_mask=prompt_mask).last_hidden_state
        if len(groups) < len(batch):
            of_row = self._tensor([groups[row.group] for row in batch])
            hidden, prompt_mask = hidden.index_select(0, of_row), prompt_mask.index_select(0, of_row)
        ids, mask = self._pad([row.tokens for row in batch])
        index, picks, answers = self._terms(batch, width=ids.shape[1])
        with self.routing.of(self._tensor([row.group[0] for row in batch])), picked_rows(self.model, index):
            logits = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
                attention_mask=prompt_mask,
                decoder_input_ids=ids,
                decoder_attention_mask=mask,
                use_cache=False,
            ).logits
        return _score(logits, picks, answers)

    def _terms(self, batch: list[SharedRow], *, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Positions with needed logits ``[picked]``; for each answer token its pick and its id, both ``[terms]``."""
        index: dict[int, int] = {}
        picks: list[int] = []
        answers: list[int] = []
        for at, row in enumerate(batch):
            for wish in row.wishes:
                start = at * width + wish.first
                picks += [index.setdefault(start + i, len(index)) for i in range(len(wish.answer))]
                answers += wish.answer
        return self._tensor(list(index)), self._tensor(picks), self._tensor(answers)

    def _pad(self, rows: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """Token ids and mask ``[rows, length]``, padded on the right."""
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self.tokenizer.pad_token_id or 0, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device)

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)


def _score(logits: Tensor, picks: Tensor, answers: Tensor) -> Tensor:
    """Log-likelihood and greedy flag of each answer token ``[2, terms]`` from ``logits [picked, vocab]``."""
    logits = logits.float()
    logprobs = logits[picks, answers] - logits.logsumexp(-1)[picks]
    greedy = logits.argmax(-1)[picks] == answers
    return torch.stack([logprobs, greedy.to(logprobs.dtype)])

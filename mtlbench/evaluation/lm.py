"""An lm-eval model class with per-row task routing, which computes shared prefixes of requests once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.distributed.shards_fit import scoring
from mtlbench.evaluation.generate import generate
from mtlbench.evaluation.packable import needs_no_mask, packable
from mtlbench.evaluation.packed_rows import PackedRow, ScoreRequest, pack_rows, packed_row, share_rows
from mtlbench.evaluation.readers import CausalReader, Seq2seqReader
from mtlbench.files.heartbeat import beat
from mtlbench.nn.low_rank.layer import known_factors
from mtlbench.nn.soft_prompts.prompt import soft_prompt_of
from mtlbench.tokens.chat import ChatPrompts
from mtlbench.tokens.encode import Tokens, fit
from mtlbench.tokens.requests import RequestTokens

LOGITS_PER_BATCH = 2**26
"""Limit on logits per batch: 256 MiB in float32."""
PREFIX_SHARE = 4
"""Shared prefixes computed together have at most the token budget divided by this, as they stay in memory until their
rows are scored."""


class RoutedLM(LM):  # type: ignore[misc]
    """Scores lm-eval requests; ``request.task_name`` determines the task id of its row.

    Requests with a common prefix share a row (:mod:`mtlbench.evaluation.packed_rows`), an encoder-decoder's context is
    encoded once for all its answers, and logits are computed only at read-out positions.

    ``token_budget`` limits rows x padded length of a batch. The model must be in evaluation mode. Requests that are not
    ``known`` are tokenised.
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
        known: RequestTokens | None = None,
    ) -> None:
        super().__init__()
        self._known = known or RequestTokens()
        self.model, self.tokenizer, self.architecture = model, tokenizer, architecture
        self.routing, self.task_ids = routing, task_ids
        self.max_length, self.token_budget = max_length, token_budget
        reader = CausalReader if architecture == "causal" else Seq2seqReader
        self._reader: CausalReader | Seq2seqReader = reader(model, routing, pad_id=tokenizer.pad_token_id or 0)
        self._tasks = 1 + max(task_ids.values(), default=0)
        self._vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """``(log-likelihood in nats, whether greedy decoding gives the answer)`` in the order of ``requests``."""
        numbers: list[int] = []
        lengths: list[int] = []
        outputs: list[Tensor] = []
        with scoring(self.model), known_factors(self.model, tasks=self._tasks):
            for batch, scores in self._scored(self._packed_rows(self._score_requests(requests))):
                scored = [request for packed in batch for request, _ in packed.readouts]
                numbers += [request.number for request in scored]
                lengths += [len(request.answer) for request in scored]
                outputs.append(scores)
                beat()
        if not outputs:
            return []
        # The only transfer to the host.
        logprobs, greedy = torch.cat(outputs, dim=1).cpu().numpy().astype(np.float64)
        starts = np.cumsum([0, *lengths[:-1]])
        sums, hits = np.add.reduceat(logprobs, starts), np.minimum.reduceat(greedy, starts)
        order = np.argsort(numbers)
        return [(float(sums[i]), bool(hits[i])) for i in order]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Not supported, as no suite scores whole texts."""
        raise NotImplementedError(
            "tasks of output type loglikelihood_rolling (perplexity of whole texts) are unsupported"
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy continuations up to the first stop string, in the order of ``requests``."""
        with known_factors(self.model, tasks=self._tasks):
            return generate(
                self.model,
                self.tokenizer,
                [(request.args[0], request.args[1], self.task_ids[request.task_name]) for request in requests],
                architecture=self.architecture,
                routing=self.routing,
                max_length=self.max_length,
                token_budget=self.token_budget,
                known=self._known,
                # generate() counts cache positions as tokens, which the virtual tokens of a soft prompt are not
                share=self.architecture == "causal" and soft_prompt_of(self.model) is None and self._packable,
            )

    @property
    def tokenizer_name(self) -> str:
        """Name by which lm-eval's cache of requests tells tokenizers apart."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The text of the tokenizer's template, or ``None`` without ``chat_template``."""
        return self.tokenizer.chat_template if chat_template else None

    @cached_property
    def _chat(self) -> ChatPrompts:
        return ChatPrompts(self.tokenizer)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation, as training renders it (:class:`~mtlbench.tokens.chat.ChatPrompts`).

        Raises:
            RequestError: the tokenizer has no template.
        """
        return self._chat(chat_history, add_generation_prompt)

    def _score_requests(self, instances: Sequence[Instance]) -> list[ScoreRequest]:
        encoded = self._known.pairs(self.tokenizer, [i.args for i in instances], architecture=self.architecture)
        requests: list[ScoreRequest] = []
        for number, (instance, (whole, answer)) in enumerate(zip(instances, encoded, strict=True)):
            context, answer = fit(whole, answer, architecture=self.architecture, max_length=self.max_length)
            task = self.task_ids[instance.task_name]
            if self.architecture == "causal":
                requests.append(ScoreRequest(number, (task, ()), (*context, *answer[:-1]), answer))
            else:
                start = int(self.model.config.decoder_start_token_id)  # type: ignore[union-attr, arg-type]
                requests.append(ScoreRequest(number, (task, context), (start, *answer[:-1]), answer))
        return requests

    @cached_property
    def _packable(self) -> bool:
        fits = packable(self._reader, max_length=self.max_length)
        if isinstance(self._reader, CausalReader):
            self._reader.unmasked = needs_no_mask(self._reader, max_length=self.max_length)
        return fits

    def _packed_rows(self, requests: Sequence[ScoreRequest]) -> list[PackedRow]:
        rows = share_rows(requests)
        if not rows or not self._packable:
            return [packed_row([single]) for row in rows for single in row.by_context()]
        causal = self.architecture == "causal"
        return pack_rows(rows, prefixes=causal, virtual_tokens=self._virtual_tokens if causal else 0)

    @property
    def _virtual_tokens(self) -> int:
        """Number of virtual tokens of a soft prompt, which precede every row that has no shared prefix."""
        prompt = soft_prompt_of(self.model)
        return 0 if prompt is None else prompt.source.length

    def _scored(self, rows: Sequence[PackedRow]) -> Iterator[tuple[list[PackedRow], Tensor]]:
        """Batches and their scores ``[2, answer tokens]``."""
        for batch in self._batches([packed for packed in rows if not packed.prefix]):
            yield batch, self._reader.scores(batch, plain=not self._packable)
        by_prefix: dict[tuple[int, Tokens], list[PackedRow]] = {}
        for packed in rows:
            if packed.prefix:
                by_prefix.setdefault((packed.group[0], packed.prefix), []).append(packed)
        for groups in self._prefix_batches(list(by_prefix)):
            assert isinstance(self._reader, CausalReader)
            prefixes = self._reader.prefixes(groups)
            for batch in self._batches(
                [packed for group in groups for packed in by_prefix[group]], before=prefixes.width
            ):
                yield batch, self._reader.scores(batch, prefixes)

    def _prefix_batches(self, groups: list[tuple[int, Tokens]]) -> Iterator[list[tuple[int, Tokens]]]:
        """Prefixes of similar length that are computed together."""
        groups.sort(key=lambda group: len(group[1]), reverse=True)
        while groups:
            size = max(1, self.token_budget // PREFIX_SHARE // len(groups[0][1]))
            yield groups[:size]
            groups = groups[size:]

    def _batches(self, rows: list[PackedRow], *, before: int = 0) -> Iterator[list[PackedRow]]:
        """Rows of similar length within the token budget and the logit limit, longest first: memory peaks early.

        ``before`` is the length of their prefixes, whose copy for each row counts a quarter.
        """
        rows.sort(key=lambda p: (len(p.group[1]), p.group[1], len(p.tokens)), reverse=True)
        virtual = 0 if before else self._virtual_tokens
        sizes = [virtual + len(p.tokens) + len(p.group[1]) + before // PREFIX_SHARE for p in rows]
        logits = [len({at for _, positions in p.readouts for at in positions}) for p in rows]
        most = LOGITS_PER_BATCH // self._vocabulary
        for low, high in cuts(sizes, logits, budget=self.token_budget, most=most):
            yield rows[low:high]


def cuts(sizes: Sequence[int], logits: Sequence[int], *, budget: int, most: int) -> list[tuple[int, int]]:
    """Split rows into batches with least padding, each within ``budget`` rows x longest size and ``most`` logits.

    A single row may exceed the limits. The cost of a batch is its padded size plus a sixteenth of the budget for fixed
    costs. Returns ``(first, last + 1)`` of each batch.
    """
    count = len(sizes)
    costs, nexts = [0.0] * (count + 1), [0] * count
    for low in reversed(range(count)):
        longest = needed = 0
        costs[low] = float("inf")
        for high in range(low + 1, count + 1):
            longest, needed = max(longest, sizes[high - 1]), needed + logits[high - 1]
            padded = longest * (high - low)
            if high > low + 1 and (padded > budget or needed > most):
                break
            cost = padded + budget / 16 + costs[high]
            if cost < costs[low]:
                costs[low], nexts[low] = cost, high
    bounds = []
    low = 0
    while low < count:
        bounds.append((low, nexts[low]))
        low = nexts[low]
    return bounds

"""lm-eval's model class over a backbone with per-row task routing: what requests share is computed once."""

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
from mtlbench.evaluation.packable import packable
from mtlbench.evaluation.packed_rows import PackedRow, ScoreRequest, pack_of, pack_rows, share_rows
from mtlbench.evaluation.readers import CausalReader, Seq2seqReader
from mtlbench.files.heartbeat import beat
from mtlbench.nn.low_rank.layer import known_factors
from mtlbench.nn.soft_prompts.prompt import soft_prompt_of
from mtlbench.tokens.encode import Tokens, encode_pairs, fit

LOGITS_PER_BATCH = 2**26
"""Most logits computed at once: 256 MiB in float32."""
TRUNK_SHARE = 4
"""Trunks read at once have at most the token budget divided by this; they stay until their rows are scored."""


class RoutedLM(LM):  # type: ignore[misc]
    """Scores lm-eval requests; ``request.task_name`` chooses the task id of its row.

    Requests that begin alike share a row (:mod:`mtlbench.evaluation.packed_rows`), an encoder-decoder's context is
    encoded once for all its answers, and logits are computed only where they are read.

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
        reader = CausalReader if architecture == "causal" else Seq2seqReader
        self._reader: CausalReader | Seq2seqReader = reader(model, routing, pad_id=tokenizer.pad_token_id or 0)
        self._tasks = 1 + max(task_ids.values(), default=0)
        self._vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """``(log-likelihood in nats, whether greedy decoding gives the answer)`` in the order of ``requests``."""
        numbers: list[int] = []
        lengths: list[int] = []
        found: list[Tensor] = []
        with scoring(self.model), known_factors(self.model, tasks=self._tasks):
            for batch, scores in self._scored(self._packs(self._wishes(requests))):
                wishes = [wish for pack in batch for wish, _ in pack.picks]
                numbers += [wish.number for wish in wishes]
                lengths += [len(wish.answer) for wish in wishes]
                found.append(scores)
                beat()
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
        with known_factors(self.model, tasks=self._tasks):
            return generate(
                self.model,
                self.tokenizer,
                [(request.args[0], request.args[1], self.task_ids[request.task_name]) for request in requests],
                architecture=self.architecture,
                routing=self.routing,
                max_length=self.max_length,
                token_budget=self.token_budget,
                # generate counts what is in a cache, and slots of a soft prompt there are no tokens
                share=self.architecture == "causal" and soft_prompt_of(self.model) is None and self._packable,
            )

    def _wishes(self, requests: Sequence[Instance]) -> list[ScoreRequest]:
        encoded = encode_pairs(self.tokenizer, [r.args for r in requests], architecture=self.architecture)
        wishes: list[ScoreRequest] = []
        for number, (request, (whole, answer)) in enumerate(zip(requests, encoded, strict=True)):
            context, answer = fit(whole, answer, architecture=self.architecture, max_length=self.max_length)
            task = self.task_ids[request.task_name]
            if self.architecture == "causal":
                wishes.append(ScoreRequest(number, (task, ()), (*context, *answer[:-1]), answer))
            else:
                start = int(self.model.config.decoder_start_token_id)  # type: ignore[union-attr, arg-type]
                wishes.append(ScoreRequest(number, (task, context), (start, *answer[:-1]), answer))
        return wishes

    @cached_property
    def _packable(self) -> bool:
        return packable(self._reader, max_length=self.max_length)

    def _packs(self, wishes: Sequence[ScoreRequest]) -> list[PackedRow]:
        rows = share_rows(wishes)
        if not rows or not self._packable:
            return [pack_of([alone]) for row in rows for alone in row.by_context()]
        causal = self.architecture == "causal"
        return pack_rows(rows, trunks=causal, slots=self._slots if causal else 0)

    @property
    def _slots(self) -> int:
        """Of a soft prompt, before every row that is read from its beginning."""
        prompt = soft_prompt_of(self.model)
        return 0 if prompt is None else prompt.source.length

    def _scored(self, packs: Sequence[PackedRow]) -> Iterator[tuple[list[PackedRow], Tensor]]:
        """Batches and their ``[2, answer tokens]``."""
        for batch in self._batches([pack for pack in packs if not pack.trunk]):
            yield batch, self._reader.scores(batch, plain=not self._packable)
        behind: dict[tuple[int, Tokens], list[PackedRow]] = {}
        for pack in packs:
            if pack.trunk:
                behind.setdefault((pack.group[0], pack.trunk), []).append(pack)
        for groups in self._waves(list(behind)):
            assert isinstance(self._reader, CausalReader)
            trunks = self._reader.trunks(groups)
            for batch in self._batches([pack for group in groups for pack in behind[group]], before=trunks.width):
                yield batch, self._reader.scores(batch, trunks)

    def _waves(self, groups: list[tuple[int, Tokens]]) -> Iterator[list[tuple[int, Tokens]]]:
        """Trunks of like length that are read together."""
        groups.sort(key=lambda group: len(group[1]), reverse=True)
        while groups:
            size = max(1, self.token_budget // TRUNK_SHARE // len(groups[0][1]))
            yield groups[:size]
            groups = groups[size:]

    def _batches(self, packs: list[PackedRow], *, before: int = 0) -> Iterator[list[PackedRow]]:
        """Packs of like length within the token budget and the logit limit, longest first: memory peaks early.

        ``before`` is the length of their trunks, whose copies for every row count a quarter.
        """
        packs.sort(key=lambda p: (len(p.group[1]), p.group[1], len(p.tokens)), reverse=True)
        own = 0 if before else self._slots
        sizes = [own + len(p.tokens) + len(p.group[1]) + before // TRUNK_SHARE for p in packs]
        logits = [len({at for _, places in p.picks for at in places}) for p in packs]
        most = LOGITS_PER_BATCH // self._vocabulary
        for low, high in cuts(sizes, logits, budget=self.token_budget, most=most):
            yield packs[low:high]


def cuts(sizes: Sequence[int], logits: Sequence[int], *, budget: int, most: int) -> list[tuple[int, int]]:
    """Runs of rows that pad least, each within ``budget`` rows x longest size and ``most`` logits, or a single row.

    A batch costs its slots and a sixteenth of the budget, as what every batch does besides its tokens.
    """
    count = len(sizes)
    costs, nexts = [0.0] * (count + 1), [0] * count
    for low in reversed(range(count)):
        longest = picked = 0
        costs[low] = float("inf")
        for high in range(low + 1, count + 1):
            longest, picked = max(longest, sizes[high - 1]), picked + logits[high - 1]
            slots = longest * (high - low)
            if high > low + 1 and (slots > budget or picked > most):
                break
            cost = slots + budget / 16 + costs[high]
            if cost < costs[low]:
                costs[low], nexts[low] = cost, high
    found = []
    low = 0
    while low < count:
        found.append((low, nexts[low]))
        low = nexts[low]
    return found

"""Which rows make each training step, and rows as tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtlbench.backbones.backbone import Backbone
from mtlbench.backbones.transfer import to_device
from mtlbench.errors import RequestError
from mtlbench.nn.packing import Packing
from mtlbench.nn.row_sums import TokenRows, packed_rows, padded_rows
from mtlbench.nn.soft_prompts.prompt import soft_prompt_of
from mtlbench.planning.mixing import read_mixing
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.packing import lay_out, pack
from mtlbench.training.tail import Places, places_by_task

WINDOW = 32
"""Steps within which the tasks have their shares of the mixture, to the row."""


def planned_steps(
    rows_per_task: Sequence[int], *, epochs: float, steps: int | None, batch_size: int, mixing: str
) -> int:
    """Optimizer steps of the budget: ``steps``, or ``epochs`` passes over the joint rows, capped where they are."""
    if steps is not None:
        return steps
    return max(1, math.ceil(epochs * read_mixing(mixing).rows_per_epoch(rows_per_task) / batch_size))


def plan_batches(
    rows_of_task: Sequence[Sequence[int]],
    *,
    steps: int,
    batch_size: int,
    mixing: str,
    seed: int,
    lengths: Sequence[int],
    by_length: bool = False,
) -> list[list[int]]:
    """The rows of every step, the same for every method.

    Each window of :data:`WINDOW` steps holds the tasks in the shares of the mixture, to the row; with ``fraction`` each
    step does, and no task is without a row in a step that has room for all. Each task's rows are visited in shuffled
    passes without replacement. The rows of a step are drawn from its window at random.

    Args:
        rows_of_task: For each task the indices of its rows.
        lengths: Length in tokens by row index.
        by_length: Let rows of like length share a step within their window, and shuffle the steps. Tasks differ in
            length, so a step then holds few of them.

    Returns:
        ``steps`` lists of ``batch_size`` row indices, shortest row first.
    """
    mixture = read_mixing(mixing)
    shares = np.array(mixture.weights([len(rows) for rows in rows_of_task]))
    if not shares.sum():
        raise RequestError("There are no training rows.")
    shares /= shares.sum()
    random = np.random.default_rng(seed)
    streams = [_passes(rows, np.random.default_rng([seed, i])) for i, rows in enumerate(rows_of_task)]
    used = np.zeros(len(shares), dtype=np.int64)
    fixed = _every_step(shares, batch_size) if mixture.every_step else None
    plan: list[list[int]] = []
    while len(plan) < steps:
        batches = min(WINDOW, steps - len(plan))
        if fixed is None:
            counts = _quota(shares * (used.sum() + batches * batch_size) - used, batches * batch_size)
        else:
            counts = fixed * batches
        used += counts
        drawn = [np.array([next(streams[i]) for _ in range(count)], dtype=np.int64) for i, count in enumerate(counts)]
        if fixed is None:
            window = np.concatenate(drawn)
            random.shuffle(window)
            grouped = (_sorted(window, lengths) if by_length else window).reshape(batches, batch_size)
        else:
            parts = [(_sorted(rows, lengths) if by_length else rows).reshape(batches, -1) for rows in drawn]
            grouped = np.concatenate(parts, axis=1)
        random.shuffle(grouped)
        plan.extend(_sorted(batch, lengths).tolist() for batch in grouped)
    return plan


def _sorted(rows: NDArray[Any], lengths: Sequence[int]) -> NDArray[Any]:
    """Shortest first; a step is the same whatever the order of its rows, and cuts between rows go by length."""
    return rows[np.argsort([lengths[i] for i in rows], kind="stable")]


def _every_step(shares: NDArray[Any], batch_size: int) -> NDArray[np.int64] | None:
    """Rows of each task in every batch: one, and the rest by share; ``None`` where a batch has not room for all."""
    some = (shares > 0).astype(np.int64)
    rest = batch_size - int(some.sum())
    if rest < 0:
        return None
    due = np.maximum(shares * batch_size - some, 0)
    return some + _quota(due * (rest / due.sum()) if due.any() else due, rest)


def _passes(rows: Sequence[int], random: np.random.Generator) -> Iterator[int]:
    while True:
        yield from (rows[i] for i in random.permutation(len(rows)))


def _quota(due: NDArray[Any], total: int) -> NDArray[np.int64]:
    """Whole numbers near ``due`` that sum to ``total``, none negative."""
    counts: NDArray[np.int64] = np.floor(np.maximum(due, 0)).astype(np.int64)
    while (missing := total - int(counts.sum())) != 0:
        gap = due - counts
        order = np.argsort(-gap if missing > 0 else gap, kind="stable")
        if missing < 0:
            order = order[counts[order] > 0]
        counts[order[: abs(missing)]] += 1 if missing > 0 else -1
    return counts


@dataclass(frozen=True)
class Batch:
    """Rows as tensors, padded on the right to the longest row."""

    tasks: Tensor
    """Task ids ``[rows]``."""
    inputs: Mapping[str, Tensor]
    """What the model is called with: ``input_ids [rows, length]``, and with an encoder-decoder ``attention_mask`` and
    ``decoder_input_ids`` too."""
    label_index: Tensor
    """Where labels are, as flat positions in ``[rows * length]`` of the (decoder's) hidden states: ``[labels]``."""
    label_ids: Tensor
    label_rows: Tensor
    """The row of each label."""
    label_weights: Tensor
    """One over the number of labels of the row, float32."""
    answers: Places | None
    """Positions that hold all labels of each row ``[rows, width]``; ``None`` where that is most of the row."""
    real_tokens: int
    padded_tokens: int
    """Token slots computed, padding included."""
    contexts: Tensor | None = None
    """Tokens of each row before its answer ``[rows]``; ``None`` for an encoder-decoder, whose inputs hold no answer."""
    packing: Packing | None = None
    """How the rows lie end to end: ``input_ids`` are then ``[chunks, width]``, and so are hidden states. ``None`` where
    rows are padded."""
    unmasked: bool = False
    """Whether the mask among ``inputs`` stands for none (:func:`~mtlbench.nn.packed_attention.right_padded`)."""
    original: Batch | None = None
    """The same on the host, where this one is on another device."""

    @property
    def rows(self) -> int:
        return self.tasks.shape[0]

    @property
    def on_host(self) -> Batch:
        """The same batch where its numbers can be read without waiting for a device."""
        return self.original or self

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, in one transfer."""
        return self if device.type == "cpu" else replace(to_device(self, device), original=self)


def token_rows(batch: Batch, model: nn.Module) -> TokenRows:
    """The row of each token that layers of ``model`` see; nothing waits for the device."""
    if batch.packing is not None:
        return packed_rows(batch.packing)
    prompt = soft_prompt_of(model)
    slots = prompt.source.length if prompt is not None and prompt.on else 0
    answers = torch.zeros_like(batch.tasks).index_add(0, batch.label_rows, torch.ones_like(batch.label_rows))
    width = batch.inputs["input_ids"].shape[1]
    if batch.contexts is not None:
        return padded_rows([(batch.contexts + answers - 1, width)], slots=slots)
    contexts = batch.inputs["attention_mask"].flatten(1).sum(1)
    return padded_rows([(contexts, width), (answers, batch.inputs["decoder_input_ids"].shape[1])], slots=slots)


@dataclass(frozen=True)
class Collator:
    """Makes batches for one backbone."""

    architecture: str
    """``causal`` or ``seq2seq``."""
    pad_id: int
    decoder_start_id: int | None
    """First token of a decoder's input; ``None`` for a causal backbone."""
    device: torch.device

    def padded(self, rows: Sequence[TokenRow], *, apart: int | None = None, unread: bool = False) -> Batch:
        """As :func:`collate` has it."""
        return collate(rows, **vars(self), apart=apart, unread=unread)

    def packed(self, rows: Sequence[TokenRow], *, by_task: bool, slots: int = 0, awkward: bool = False) -> Batch:
        """As :func:`collate_packed` has it."""
        return collate_packed(rows, **vars(self), by_task=by_task, slots=slots, awkward=awkward)


def collator_of(backbone: Backbone, device: torch.device) -> Collator:
    """What makes batches for ``backbone``."""
    return Collator(backbone.architecture, backbone.pad_id, backbone.decoder_start_id, device)


def collate(
    rows: Sequence[TokenRow],
    *,
    architecture: str,
    pad_id: int,
    decoder_start_id: int | None,
    device: torch.device,
    apart: int | None = None,
    unread: bool = False,
) -> Batch:
    """``rows`` as one batch. A causal row loses its last token as input: nothing is predicted from it.

    Args:
        apart: The rows of an encoder, with so many places before each, and of its decoder have different widths, by
            which layers that report their tokens tell them apart; ``None`` where none does.
        unread: Give masks that transformers passes on as they are; for models that
            :func:`~mtlbench.nn.packing.passes_masks` holds of.

    Raises:
        ValueError: for a row without context or target, or a seq2seq batch without ``decoder_start_id``.
    """
    if any(not row.context or not row.target for row in rows):
        raise ValueError("a row needs at least one token of context and one of target")
    targets = [np.asarray(row.target, dtype=np.int64) for row in rows]
    sizes = np.array([len(target) for target in targets])
    if architecture == "causal":
        texts = [np.asarray(row.context + row.target[:-1], dtype=np.int64) for row in rows]
        ids, mask = _pad(texts, pad_id)
        # No token looks at the padding behind it, so causal rows need no mask, which the kernels are faster without.
        inputs = {"input_ids": ids}
        if unread:
            inputs["position_ids"] = np.tile(np.arange(ids.shape[1]), (len(rows), 1))
            inputs["attention_mask"] = np.zeros((1, 1, 1, 1), dtype=np.float32)
        starts, width = np.array([len(row.context) - 1 for row in rows]), ids.shape[1]
        real, padded = int(mask.sum()), ids.size
    else:
        if decoder_start_id is None:
            raise ValueError("a seq2seq batch needs decoder_start_id")
        ids, mask = _pad([np.asarray(row.context, dtype=np.int64) for row in rows], pad_id)
        shifted, _ = _pad([np.concatenate(([decoder_start_id], target[:-1])) for target in targets], pad_id)
        if apart is not None and shifted.shape[1] == ids.shape[1] + apart:
            shifted = np.pad(shifted, ((0, 0), (0, 1)), constant_values=pad_id)
        given = mask.astype(bool)[:, None, None] if unread else mask
        inputs = {"input_ids": ids, "attention_mask": given, "decoder_input_ids": shifted}
        starts, width = np.zeros(len(rows), dtype=np.int64), shifted.shape[1]
        real, padded = int(mask.sum() + sizes.sum()), ids.size + shifted.size
    label_rows = np.repeat(np.arange(len(rows)), sizes)
    within = np.arange(len(label_rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)

    return Batch(
        tasks=torch.from_numpy(np.array([row.task for row in rows], dtype=np.int64)),
        inputs={name: torch.from_numpy(array) for name, array in inputs.items()},
        label_index=torch.from_numpy(label_rows * width + starts[label_rows] + within),
        label_ids=torch.from_numpy(np.concatenate(targets)),
        label_rows=torch.from_numpy(label_rows),
        label_weights=torch.from_numpy((1 / sizes)[label_rows].astype(np.float32)),
        answers=None
        if 2 * sizes.max() > width
        else Places(torch.from_numpy(_windows(starts + sizes, width=sizes.max(), length=width))),
        real_tokens=real,
        padded_tokens=padded,
        contexts=torch.from_numpy(starts + 1) if architecture == "causal" else None,
        unmasked=unread and architecture == "causal",
    ).to(device)


def collate_packed(
    rows: Sequence[TokenRow],
    *,
    architecture: str,
    pad_id: int,
    decoder_start_id: int | None,
    device: torch.device,
    by_task: bool,
    slots: int = 0,
    awkward: bool = False,
) -> Batch:
    """The same rows as :func:`collate`, laid end to end instead of padded.

    Args:
        by_task: Whether layers ask for the task of a row: the tokens of each task then have chunks of their own.
        slots: Places before each row of a decoder-only stack or an encoder, for a soft prompt.
        awkward: The places of an encoder are no multiple of the chunks of its decoder, as they may come to be: a
            backbone that mistakes the one for the other (UMT5) then shows it.
    """
    tasks = np.array([row.task for row in rows], dtype=np.int64)
    room = np.full(slots, pad_id, dtype=np.int64)
    targets = [np.asarray(row.target, dtype=np.int64) for row in rows]
    sizes = np.array([len(target) for target in targets], dtype=np.int64)
    whole = torch.zeros(1, 1, 1, 1)  # a mask that transformers passes on: attention goes by row
    if architecture == "causal":
        texts = [np.append(room, row.context + row.target[:-1]) for row in rows]
        layouts = [lay_out(np.array([len(text) for text in texts]), tasks, by_task=by_task)]
        answers = layouts[0].starts + np.array([slots + len(row.context) - 1 for row in rows])
        inputs = {
            "input_ids": torch.from_numpy(layouts[0].spread(texts, pad_id)),
            "position_ids": torch.from_numpy(layouts[0].positions()),
            "attention_mask": whole,
        }
    else:
        if decoder_start_id is None:
            raise ValueError("a seq2seq batch needs decoder_start_id")
        texts = [np.append(room, row.context) for row in rows]
        shifted = [np.concatenate(([decoder_start_id], target[:-1])) for target in targets]
        encoder = lay_out(np.array([len(text) for text in texts]), tasks, by_task=by_task)
        # Layers and attention tell the streams by their sizes.
        decoders = (lay_out(sizes, tasks, by_task=by_task, more=more) for more in count())
        decoder = next(
            d
            for d in decoders
            if d.places != encoder.places
            and (not by_task or d.chunks != encoder.chunks)
            and (not awkward or d.chunks == 1 or encoder.places % d.chunks)
        )
        layouts, answers = [encoder, decoder], decoder.starts
        inputs = {
            "input_ids": torch.from_numpy(encoder.spread(texts, pad_id)),
            "attention_mask": whole,
            "decoder_input_ids": torch.from_numpy(decoder.spread(shifted, pad_id)),
            "decoder_attention_mask": whole,
        }
    label_rows = np.repeat(np.arange(len(rows)), sizes)
    within = np.arange(len(label_rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    labels = answers[label_rows] + within
    return Batch(
        tasks=torch.from_numpy(tasks),
        inputs=inputs,
        label_index=torch.from_numpy(labels),
        label_ids=torch.from_numpy(np.concatenate(targets)),
        label_rows=torch.from_numpy(label_rows),
        label_weights=torch.from_numpy((1 / sizes)[label_rows].astype(np.float32)),
        answers=_places(labels, tasks[label_rows], by_task=by_task),
        real_tokens=int(sum(layout.lengths.sum() for layout in layouts)) - len(rows) * slots,
        padded_tokens=sum(layout.places for layout in layouts) - len(rows) * slots,
        contexts=torch.from_numpy(np.array([len(row.context) for row in rows])) if architecture == "causal" else None,
        packing=pack(layouts),
    ).to(device)


def _places(labels: NDArray[Any], tasks: NDArray[Any], *, by_task: bool) -> Places:
    """The places of the answers, in chunks as those of the stream."""
    if not by_task:
        return Places(torch.from_numpy(labels[None]))
    return places_by_task(labels.tolist(), tasks.tolist())


def _windows(ends: NDArray[Any], *, width: int, length: int) -> NDArray[np.int64]:
    """The ``width`` positions of each row up to ``ends [rows]``, flat in ``[rows * length]``: ``[rows, width]``."""
    first = np.maximum(ends - width, 0) + np.arange(len(ends)) * length
    windows: NDArray[np.int64] = first[:, None] + np.arange(width)
    return windows


def _pad(texts: Sequence[NDArray[Any]], pad_id: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Ids and mask ``[rows, longest]``."""
    lengths = np.array([len(text) for text in texts])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask.astype(bool)] = np.concatenate(texts)
    return ids, mask

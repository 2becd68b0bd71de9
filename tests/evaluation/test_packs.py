"""Rows of several sequences hold every path of their tree, and cost least."""

from __future__ import annotations

import random

from mtlbench.evaluation.lm import cuts
from mtlbench.evaluation.packed_rows import ScoreRequest, pack_rows, packed_row, share_rows

GROUP = (0, ())


def rows_of(*sequences, group=GROUP, answer=1):
    return share_rows(
        [ScoreRequest(n, group, tuple(s), (*s[len(s) - answer + 1 :], 9)) for n, s in enumerate(sequences)]
    )


def read(packed, at):
    """The tokens that the token ``at`` sees, its own last."""
    return [*packed.prefix, *(t for i, t in enumerate(packed.tokens) if i <= at < packed.ends[i])]


def random_tree(seed):
    draw = random.Random(seed)
    made = [tuple(draw.randrange(3) for _ in range(draw.randint(1, 4)))]
    while len(made) < 12:
        start = draw.choice(made)
        made.append(start[: draw.randint(0, len(start))] + tuple(draw.randrange(3) for _ in range(draw.randint(1, 9))))
    return made


def test_every_request_sees_its_own_sequence_and_nothing_else():
    for seed in range(30):
        sequences = random_tree(seed)
        rows = rows_of(*sequences)
        alike = len({tokens[0] for tokens in sequences}) == 1 and min(map(len, sequences)) > 1
        prefix = rows[0].tokens[:1] if alike else ()
        for packed in (packed_row(rows), packed_row(rows, prefix=prefix), *pack_rows(rows)):
            for request, positions in packed.readouts:
                assert len(positions) == len(request.answer)
                assert read(packed, positions[-1]) == list(request.tokens)
                assert packed.positions[positions[-1]] == len(request.tokens) - 1
        assert sorted(request.number for packed in pack_rows(rows) for request, _ in packed.readouts) == list(
            range(len(sequences))
        )


def test_answers_of_several_tokens_are_read_along_their_path():
    rows = rows_of((1, 2, 3, 4), (1, 2, 3, 5, 6), answer=2)
    packed = packed_row(rows)
    assert packed.tokens == [1, 2, 3, 4, 5, 6]
    assert packed.positions == [0, 1, 2, 3, 3, 4]
    assert [positions for _, positions in packed.readouts] == [[2, 3], [4, 5]]
    assert packed.branches
    assert not packed_row(rows[:1]).branches


def test_choices_of_a_long_context_share_a_row_and_strangers_do_not():
    context, other = tuple(range(100, 200)), tuple(range(300, 400))
    packed_rows = pack_rows(rows_of((*context, 1, 2), (*context, 3, 4), (*other, 1, 2)))
    assert sorted(len(packed.tokens) for packed in packed_rows) == [102, 104]
    assert not any(packed.prefix for packed in packed_rows)


def test_a_preamble_of_many_questions_is_read_once():
    preamble = tuple(range(1000, 1400))
    questions = [(*preamble, *(random.Random(n).randrange(900) for _ in range(60))) for n in range(30)]
    packed_rows = pack_rows(rows_of(*questions))
    assert {packed.prefix for packed in packed_rows} == {preamble}
    assert sum(len(packed.tokens) for packed in packed_rows) <= 30 * 60
    without = pack_rows(rows_of(*questions), prefixes=False)
    assert not any(packed.prefix for packed in without)


def test_each_paragraph_is_a_shared_prefix():
    def paragraph(n):
        return (7, *(random.Random(n).randrange(900) for _ in range(250)))

    tails = [tuple(random.Random(100 + n).randrange(900) for _ in range(30)) for n in range(20)]
    packed_rows = pack_rows(rows_of(*((*paragraph(n), *tail) for n in range(3) for tail in tails)))
    assert {packed.prefix for packed in packed_rows} == {paragraph(n) for n in range(3)}


def test_no_logits_are_wanted_inside_a_shared_prefix():
    preamble = tuple(range(1000, 1400))
    rows = share_rows(
        [ScoreRequest(n, GROUP, (*preamble, n), (*preamble[300:], n, 1)) for n in range(30)]  # answers that begin alike
    )
    packed_rows = pack_rows(rows)
    assert all(
        min(positions) >= 0 and len(positions) == 102 for packed in packed_rows for _, positions in packed.readouts
    )
    assert all(len(packed.prefix) <= 299 for packed in packed_rows)


def test_groups_never_share():
    context = tuple(range(50))
    rows = share_rows([ScoreRequest(n, (n, ()), (*context, 1), (2,)) for n in range(3)])
    assert len(pack_rows(rows)) == 3


def test_batches_hold_the_budget_and_pad_little():
    draw = random.Random(0)
    sizes = sorted((draw.randint(5, 300) for _ in range(200)), reverse=True)
    found = cuts(sizes, [1] * 200, budget=1024, most=10**9)
    assert [low for low, _ in found] == [0, *(high for _, high in found[:-1])]
    assert found[-1][1] == 200
    slots = [max(sizes[low:high]) * (high - low) for low, high in found]
    assert max(slots) <= 1024
    assert sum(slots) < 1.1 * sum(sizes)


def test_a_row_beyond_every_limit_is_a_batch_of_its_own():
    assert cuts([5000, 10, 10], [9, 1, 1], budget=100, most=5) == [(0, 1), (1, 3)]
    assert cuts([10, 10, 10], [3, 3, 3], budget=100, most=5) == [(0, 1), (1, 2), (2, 3)]
    assert cuts([], [], budget=100, most=5) == []

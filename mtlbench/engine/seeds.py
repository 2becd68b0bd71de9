"""One seed per axis of randomness, so that a change on one axis leaves the others alone."""

from __future__ import annotations

import hashlib


def axis_seed(seed: int, axis: str) -> int:
    """A seed in ``[0, 2**63)`` from the SHA-256 of ``seed`` and ``axis``.

    ``axis`` names what is drawn: ``data-order``, ``split``, ``dropout``, ``search-order``, ``init/<layer name>``.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{axis}".encode()).digest()[:8], "big") >> 1

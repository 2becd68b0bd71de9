"""Run folders on disk: records, claims, requests and other outputs of cells."""

from __future__ import annotations

from mtlbench.store.claims import Claim
from mtlbench.store.folder import RunFolder, newest

__all__ = ["Claim", "RunFolder", "newest"]

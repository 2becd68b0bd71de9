"""Fails when imported, as a plugin does whose own dependency is gone."""

from __future__ import annotations

raise ImportError("libmissing.so.3: cannot open shared object file")

"""``python -m mtlbench`` is the ``mtlbench`` command."""

from __future__ import annotations

from mtlbench.cli import main

main()

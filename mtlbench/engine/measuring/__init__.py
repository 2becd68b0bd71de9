"""The side of ``mtlbench measure`` that needs torch."""

"""The methods of the LoRA family as their published code writes them: loops, gathers and no thought of cost.

What ours must equal, and what the benchmarks time ours against. Each class wraps a frozen linear; parameters have the
names and shapes of the goldens in `tests/goldens`.
"""

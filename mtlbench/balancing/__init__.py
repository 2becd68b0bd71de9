"""Balancing of tasks: the balancers that come with mtlbench, and how their weights meet the gradients of a step."""

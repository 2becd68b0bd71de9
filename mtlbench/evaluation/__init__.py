"""The lm-eval model class: what requests share is read once, rows are routed by their task."""

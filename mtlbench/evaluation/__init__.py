"""Evaluation through lm-eval: a model class with per-row task routing and shared prefixes."""

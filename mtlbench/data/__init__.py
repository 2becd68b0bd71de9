"""Rows from the hub, a folder or the demo generator, and lm-eval task objects made from them. No torch."""

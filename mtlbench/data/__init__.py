"""Data sets from the hub, a folder or the demo generator, and lm-eval task objects made of them. No torch."""

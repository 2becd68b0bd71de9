"""The embedded demo: a deterministic language, text made from it, and two backbones pretrained on that text."""

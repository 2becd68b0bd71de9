"""The embedded demo: a small deterministic language, the text made from it, and two backbones pretrained on that text."""

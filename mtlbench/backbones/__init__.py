"""Pretrained models: found, loaded, checked."""

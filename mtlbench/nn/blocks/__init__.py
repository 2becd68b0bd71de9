"""Adapters behind attention and feed-forward blocks."""

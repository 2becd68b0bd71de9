"""Rows to token ids, and the cache of them."""

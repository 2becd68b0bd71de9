"""Tokenisation of examples, and the cache of tokens."""

"""Trained vectors before a row's embeddings."""

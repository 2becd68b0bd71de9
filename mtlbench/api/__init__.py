"""Contracts and plain values; nothing here loads torch."""

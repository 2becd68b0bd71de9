"""Bundles: data, models and a manifest of hashes in one folder, for machines without a network."""

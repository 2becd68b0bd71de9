"""Trained keys and values before those of attention: where they stand, what makes them, how they are searched."""

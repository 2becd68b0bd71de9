"""Observers of running cells: event relay, step log, progress display, experiment trackers."""

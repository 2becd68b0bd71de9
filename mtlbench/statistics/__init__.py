"""Which differences are real: paired seeds, resampled examples, tests over tasks, and how many seeds it takes."""

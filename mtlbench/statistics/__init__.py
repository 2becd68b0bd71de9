"""Which differences are significant: paired seeds, resampled examples, tests over tasks, and sample sizes."""

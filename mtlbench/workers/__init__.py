"""Worker processes: the work loop, stack dumps, and groups of processes for cells on several devices."""

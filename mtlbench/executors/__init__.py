"""Executors: start worker processes on this machine, on Ray or on Slurm, and supervise them."""

"""`mtlbench measure`: time, memory, FLOPs and energy of a method on stated hardware."""

"""`mtlbench measure`: time, memory, operations and energy of a method, on hardware that is named. Never loads torch."""

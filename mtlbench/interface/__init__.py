"""The Python interface: what notebooks and scripts call. The names are those of :mod:`mtlbench`."""

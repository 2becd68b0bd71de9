"""What a study says beyond its scores: forgetting on probe tasks, calibration, and sweeps of a field."""

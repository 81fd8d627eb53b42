"""How cluster.calibrate measures and fits."""

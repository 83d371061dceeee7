"""Teaching a method its job: one loop for all methods, checkpoints, exact resume."""

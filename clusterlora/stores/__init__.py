"""Where a study's state lives: the study database, adapter weights, and the experiment tracker with its model registry."""

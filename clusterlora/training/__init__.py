"""Training adapters: cache keys, jobs, the engine with its backends, and the reference engine that it is tested against."""

"""Policy about adapters: cache keys, merging, PEFT folders, and weights that are what was recorded."""

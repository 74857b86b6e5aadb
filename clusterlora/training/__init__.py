"""Training adapters: identity, batches, the reference engine and what happens when memory runs out."""

"""The persona signal: how much answers depend on the persona and the cluster beyond the prompt, measured before any training."""

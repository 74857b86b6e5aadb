"""One GPU against its peers and against itself, on models that are shapes: `python -m benchmarks.gpu`."""

"""Comparisons with other trainers and servers of LoRA adapters; `make bench` runs them and writes docs/benchmarks.{json,md}."""

"""Microbenchmarks and side-by-side runs: `python -m benchmarks.run`."""

"""Microbenchmarks, and comparisons with other libraries: `python -m benchmarks.run`."""

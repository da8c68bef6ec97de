"""The suites: one module for each, or for several that share code."""

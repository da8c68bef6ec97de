"""What is timed: one module for each suite, or for those that share most."""

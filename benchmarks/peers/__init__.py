"""Other libraries beside ours: the same work, checked to be the same before it is timed."""

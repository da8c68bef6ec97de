"""Compares other libraries with this one: the same work, checked before it is timed."""

"""Faults at every moment of a run, and what must be left of it: real processes, real signals, real files."""

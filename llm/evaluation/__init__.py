"""A model and held-out text -> numbers: Korean probes, statistics of what it writes, tasks of lm-eval."""

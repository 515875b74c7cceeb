"""Does one group of settings learn everything? Runs of the tiny tasks in ``benchmarks/tasks/probes.py``."""

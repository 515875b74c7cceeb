"""Environments that benchmarks, tests and examples share, each with a scripted policy that solves it."""

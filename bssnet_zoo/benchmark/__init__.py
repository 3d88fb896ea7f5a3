"""Benchmark: speed and memory of models by size, backend and precision.

- `backends`: what is timed; `peers`: networks of others.
- `rounds`: times things by turns, each in a process of its own.
- `table`: what is shown.
"""

"""Benchmarks: load generator, pipeline timing and comparisons, each checked before it is timed."""

"""Held-out items answered, statistics, gate, benchmarks, tables, plots, report."""

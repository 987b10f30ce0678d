"""Benchmarks; each prints one JSON line. Run them as `python -m benchmarks.NAME`."""

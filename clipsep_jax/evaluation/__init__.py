"""Scores on held-out mixtures."""

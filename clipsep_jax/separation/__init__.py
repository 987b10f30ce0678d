"""Separation of recordings."""

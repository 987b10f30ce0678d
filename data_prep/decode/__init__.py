"""Decoding of media files."""

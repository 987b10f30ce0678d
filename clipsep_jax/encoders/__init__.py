"""Frozen networks that turn pictures and sentences into query embeddings."""

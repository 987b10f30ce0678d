"""Training: one model, or a sweep of several."""

"""Checkpoints: training states, servable model folders, and weights from elsewhere."""

"""Checkpoint -> answers, as they are made."""

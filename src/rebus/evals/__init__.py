"""Checkpoint -> results: questions with known answers, asked with the right picture, a wrong one and none."""

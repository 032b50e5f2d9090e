"""Rebus: build your own vision-language model in the open."""

__version__ = "0.1.0"

"""Which Rebus this is."""

__version__ = "0.1.0"

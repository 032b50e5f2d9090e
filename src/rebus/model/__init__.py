"""The model: vision tower, connector and language model over padding-free packs."""

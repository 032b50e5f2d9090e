"""Plan -> batches: which pack goes where at which step, and the padding-free tensors that the model reads."""

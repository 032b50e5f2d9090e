"""batches + model -> checkpoints. `loop.py` calls functions in order; `step.py` is one optimizer step."""

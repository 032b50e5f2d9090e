"""Sample -> token ids, loss mask, image slots. Leaves no artifact: training, evaluation and the server all call it."""

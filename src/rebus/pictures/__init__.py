"""From encoded bytes to what a tower sees: one decode, one resize a rule, one normalisation for every stage."""

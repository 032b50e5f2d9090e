"""Vision encoders, shared by scoring and training. The seam is narrow: any module that maps pixels float32
[B, 3, H, W] to features [B, num_tokens, width] and carries those two numbers as attributes."""

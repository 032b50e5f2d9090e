"""Score tables -> which samples to keep, and which rule dropped each other one."""

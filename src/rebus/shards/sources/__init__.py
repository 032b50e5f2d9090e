"""One module a format. A converting source has `read_records` (cheap, in order) and `build` (one record -> members)."""

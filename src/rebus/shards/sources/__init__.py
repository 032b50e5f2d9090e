"""One module a format. A converting source has `find_pieces(input, rows_per_piece)`, `read_piece(piece)` -> (key,
record or what is wrong with it) and `build(record, root)` -> members. One whose rows can stay where they lie has also
`describe`, the json that `build` writes, and `survey`: that json and the names of the pictures, no file opened."""

"""Raw data -> WebDataset shards with an index: any sample is one seek away, and a bad one costs itself alone."""

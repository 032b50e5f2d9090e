"""`rebus reshard`: a subset of shards, written anew as tars that any tool reads."""

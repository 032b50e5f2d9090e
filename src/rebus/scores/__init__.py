"""shards -> score tables: one parquet per shard and scorer, keyed by uid. A scorer is a module in scorers/."""

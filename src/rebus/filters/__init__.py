"""shards -> a filter network: a dual encoder of trusted pairs, which `rebus score` then reads like any other."""

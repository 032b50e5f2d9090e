"""One file a scorer, found by its name. Each holds

Options                  its settings in a recipe (a rebus.config.Config)
open_scorer(Options)     -> rebus.scores.scorer.Opened

and where they are needed

judge(Options, {column: array [pool, ...]})     -> {column: float32 [pool]}, for a pair judged against its whole pool
inputs(Options)          -> {name: fingerprint} of what else shapes the scores, such as weights
"""

"""One file a scorer, found by its name. Each holds

Options             its settings in a recipe (a rebus.config.Config)
open_scorer(Options) -> measure(list[Decoded]) -> {column: array [len(list), ...]}
judge(Options, {column: array [pool, ...]}) -> {column: float32 [pool]}     only where a pair is judged
                                                                            against the pool it stands in
"""

"""`rebus score` with the scorers of extra_scorers, as a process that a test can lose: score_alone.py RECIPE."""

import sys
from pathlib import Path

from rebus.config import load_recipe
from rebus.scores import scorers
from rebus.scores.config import ScoreRecipe
from rebus.scores.run import run

if __name__ == "__main__":
    scorers.__path__.append(str(Path(__file__).parent / "extra_scorers"))
    run(load_recipe(ScoreRecipe, Path(sys.argv[1])))

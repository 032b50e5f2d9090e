"""Draws the picture of the way (way.svg), and way.png from it where chromium or rsvg-convert is at hand.

python docs/way.py
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 1280, 664
BOX_WIDTH, BOX_HEIGHT, LEFT = 274, 168, 40
COLUMN, ROW_TOPS = 309, (112, 328)

DATA, LEARN, USE = "data", "learn", "use"


@dataclass(frozen=True)
class Stage:
    """A box: what it is called, the verb that makes it, what it writes, in which files."""

    name: str
    verb: str
    says: tuple[str, ...]
    files: tuple[str, ...]
    style: str


STAGES = (
    Stage(
        "shards",
        "rebus shards",
        ("samples in WebDataset tars,", "each one seek away"),
        ("NNNNN.tar", "NNNNN.index.parquet"),
        DATA,
    ),
    Stage("scores", "rebus score", ("one table a scorer,", "one decode a picture"), ("SCORER/NNNNN.parquet",), DATA),
    Stage(
        "selection",
        "rebus select",
        ("what to keep, and which", "rule dropped the rest"),
        ("selection.parquet", "funnel.json, uids.npy"),
        DATA,
    ),
    Stage(
        "packs",
        "rebus pack",
        ("the documents of each pack:", "references, no copies"),
        ("plan.arrow", "pack.json"),
        DATA,
    ),
    Stage("batches", "(in the loader)", ("ids, labels, positions, pixels;", "no padding"), ("nothing on disk",), LEARN),
    Stage(
        "model",
        "rebus train",
        ("vision tower, connector,", "language model; exact resume"),
        ("metrics.jsonl", "states/step-NNNNNN"),
        LEARN,
    ),
    Stage(
        "checkpoints",
        "rebus train",
        ("what was trained; the rest", "is named by its fingerprint"),
        ("model.json, adapter/", "connector.safetensors"),
        LEARN,
    ),
)
ENDS = (
    Stage("evals", "rebus eval", (), ("answers.jsonl, results.json",), USE),
    Stage("server", "rebus chat", (), ("answers, as they are made",), USE),
)

CSS = """
text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif;
  fill: #1a1d21; }
.paper { fill: #fbfaf7; stroke: #d9d5cc; }
.title { font-size: 27px; font-weight: 700; }
.lead { font-size: 17px; fill: #5a626c; }
.name { font-size: 21px; font-weight: 700; }
.verb { font: 600 15px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; }
.says { font-size: 15.5px; }
.files { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #454c55; }
.box { stroke-width: 1.6; }
.data { fill: #e7f1f9; stroke: #0072b2; } .data-bar { fill: #0072b2; }
.learn { fill: #fdf0e0; stroke: #b85c00; } .learn-bar { fill: #b85c00; }
.use { fill: #e5f4ee; stroke: #00785a; } .use-bar { fill: #00785a; }
.arrow { fill: none; stroke: #454c55; stroke-width: 2.2; } .head { fill: #454c55; }
"""


def text(x: float, y: float, words: str, style: str) -> str:
    return f'<text x="{x}" y="{y}" class="{style}">{escape(words)}</text>'


def box(x: float, y: float, height: float, stage: Stage) -> str:
    """A stage as a card with a coloured edge."""
    parts = [
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{height}" rx="9" class="box {stage.style}"/>',
        f'<rect x="{x}" y="{y + 9}" width="6" height="{height - 18}" class="{stage.style}-bar"/>',
        text(x + 20, y + 31, stage.name, "name"),
        text(x + 20, y + 54, stage.verb, "verb"),
    ]
    line = y + 80
    for words in stage.says:
        parts.append(text(x + 20, line, words, "says"))
        line += 21
    line += 6 if stage.says else 0
    for name in stage.files:
        parts.append(text(x + 20, line, name, "files"))
        line += 20
    return "".join(parts)


def arrow(*points: tuple[float, float]) -> str:
    """A line with corners and a head at its end; the last leg is horizontal or points down."""
    before_y, (x, y) = points[-2][1], points[-1]
    if before_y == y:
        head = f"{x},{y} {x - 11},{y - 6} {x - 11},{y + 6}"
        end = (x - 9, y)
    else:
        head = f"{x},{y} {x - 6},{y - 11} {x + 6},{y - 11}"
        end = (x, y - 9)
    line = " ".join(f"{px},{py}" for px, py in (*points[:-1], end))
    return f'<polyline points="{line}" class="arrow"/><polygon points="{head}" class="head"/>'


def draw() -> str:
    """The whole picture. Two rows are read left to right; the ends stand where the way parts."""
    parts = [
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="12" class="paper"/>',
        text(LEFT, 50, "The way of the data", "title"),
        text(
            LEFT,
            80,
            "Each stage reads the folders before it and writes one of its own, named after what it makes.",
            "lead",
        ),
    ]
    spots = [(LEFT + COLUMN * (i % 4), ROW_TOPS[i // 4]) for i in range(len(STAGES))]
    parts += [box(x, y, BOX_HEIGHT, stage) for (x, y), stage in zip(spots, STAGES, strict=True)]
    half = BOX_HEIGHT / 2
    for (x, y), (next_x, next_y) in pairwise(spots):
        if y == next_y:
            parts.append(arrow((x + BOX_WIDTH + 3, y + half), (next_x - 3, y + half)))
        else:
            between, middle = (y + BOX_HEIGHT + next_y) / 2, next_x + BOX_WIDTH / 2
            start = x + BOX_WIDTH / 2
            parts.append(arrow((start, y + BOX_HEIGHT + 2), (start, between), (middle, between), (middle, next_y - 3)))
    end_x, (last_x, last_y) = LEFT + COLUMN * 3, spots[-1]
    heights, gap = 100, 16
    tops = [last_y + half - heights - gap / 2 + 24, last_y + half + gap / 2 + 24]
    for top, stage in zip(tops, ENDS, strict=True):
        parts.append(box(end_x, top, heights, stage))
        turn = last_x + BOX_WIDTH + 16
        parts.append(
            arrow(
                (last_x + BOX_WIDTH + 3, last_y + half), (turn, last_y + half), (turn, top + 50), (end_x - 3, top + 50)
            )
        )
    parts += _foot()
    body = "".join(parts)
    label = "shards, scores, selection, packs, batches, model, checkpoints, then evals and server"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="The way of the data: {label}"><style>{CSS}</style>{body}</svg>\n'
    )


def _foot() -> list[str]:
    y = 578
    return [
        text(LEFT, y, "Every folder carries manifest.json, written last: the fingerprint of what made it.", "lead"),
        text(
            LEFT,
            y + 25,
            "A killed stage goes on where it stopped. A bad sample costs itself alone: quarantine, never silence.",
            "lead",
        ),
        text(
            LEFT,
            y + 50,
            "rebus show looks into shards, selections, plans and runs; rebus report gathers all into one page.",
            "lead",
        ),
    ]


def rasterise(svg: Path, png: Path) -> bool:
    """Twice the size, for dense screens. False where no program that can is installed."""
    if shutil.which("rsvg-convert"):
        subprocess.run(["rsvg-convert", "--zoom", "2", str(svg), "-o", str(png)], check=True)
        return True
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "way.html"
        page.write_text(f'<body style="margin:0;background:transparent">{svg.read_text()}</body>')
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--force-device-scale-factor=2", "--default-background-color=00000000"]
        command += [f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={png}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    return True


def main() -> None:
    svg, png = FOLDER / "way.svg", FOLDER / "way.png"
    svg.write_text(draw())
    print(f"{svg}; {png if rasterise(svg, png) else 'no chromium or rsvg-convert, so no way.png'}")


if __name__ == "__main__":
    main()

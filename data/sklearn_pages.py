"""Makes real interleaved pages of the example gallery in Debian's python-sklearn-doc (BSD-3-Clause): text and charts.

    python data/sklearn_pages.py --out runs/interleaved/pages  # fetches the package (50 MB): apt-get download
    python data/sklearn_pages.py --out runs/interleaved/pages --deb FILE  # takes one that lies here already

out/pages.jsonl has OBELICS' form (parallel lists: `texts` with null where an image stands, `images` with null where
text stands), the pictures lie under out/images; `rebus shards` reads it as `source: pages`. Kept are title, prose and
short code; what programs printed, long code, navigation and download links are not.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rebus.errors import DataError
from rebus.fingerprint import write_atomically

PACKAGE = "python-sklearn-doc"
EXAMPLE = "sphx-glr-example-title"  # class of the section that holds an example, and nothing around it
MAX_CODE_CHARS = 400  # longer blocks are plotting code for the most part; what they show is the picture
MAX_TEXT_CHARS = 2000  # some 500 tokens
PICTURES = (".png", ".jpg", ".jpeg")
BULLET = "- "

_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_BLOCKS = {"h1", "h2", "h3", "h4", "p", "li", "dt", "dd", "blockquote", "figcaption", "div", "section", "ul", "ol"}
_SKIPPED_TAGS = {"script", "style", "table", "svg", "button"}
_SKIPPED_CLASSES = {
    "headerlink", "sphx-glr-download-link-note", "sphx-glr-footer", "sphx-glr-script-out", "sphx-glr-timing",
    "sphx-glr-signature", "sphx-glr-thumbnails", "sphx-glr-thumbcontainer", "output_subarea", "admonition-title",
}  # fmt: skip


@dataclass
class Summary:
    """What was made. num_left_out: examples without a picture."""

    num_pages: int = 0
    num_pictures: int = 0
    num_chars: int = 0
    num_left_out: int = 0


@dataclass
class _Open:
    """An element that is open. skipped: nothing in it is wanted. example: it is the section of an example."""

    tag: str
    skipped: bool
    example: bool


@dataclass
class _Page:
    """Text blocks and pictures (None and the source) in reading order."""

    blocks: list[tuple[str | None, str]] = field(default_factory=list)

    def record(self, name: str) -> dict[str, Any]:
        """Blocks between two pictures become one text, a long one several, so that a document can be cut there."""
        texts: list[str | None] = []
        images: list[str | None] = []
        for text, picture in self.blocks:
            if text is not None and texts and texts[-1] is not None:
                texts[-1] += "\n\n"
                if len(texts[-1]) + len(text) <= MAX_TEXT_CHARS:
                    texts[-1] += text
                    continue
            texts.append(text)
            images.append(picture or None)
        return {"id": name, "texts": texts, "images": images}


class GalleryParser(HTMLParser):
    """Reads the example of one page into `page`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = _Page()
        self._open: list[_Open] = []
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        classes = set((values.get("class") or "").split())
        if (tag in _BLOCKS or tag == "pre") and self._text != BULLET:
            self._flush()
        if tag == "li":
            self._text = BULLET
        if tag == "br":
            self._text += " "
        if tag == "img" and self._wanted and values.get("src"):
            self._flush()
            self.page.blocks.append((None, str(values["src"])))
        if tag not in _VOID:
            around = self._open[-1] if self._open else _Open("", False, False)
            skipped = around.skipped or tag in _SKIPPED_TAGS or bool(classes & _SKIPPED_CLASSES)
            self._open.append(_Open(tag, skipped, around.example or EXAMPLE in classes))

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._flush()
        if tag == "pre":
            self._flush_code()
        places = [place for place, element in enumerate(self._open) if element.tag == tag]
        if places:
            del self._open[places[-1] :]

    def handle_data(self, data: str) -> None:
        if self._wanted:
            self._text += data

    @property
    def _wanted(self) -> bool:
        return bool(self._open) and self._open[-1].example and not self._open[-1].skipped

    def _flush(self) -> None:
        text = " ".join(self._text.split())
        if text != BULLET.strip() and text:
            self.page.blocks.append((text, ""))
        self._text = ""

    def _flush_code(self) -> None:
        lines = [line for line in self._text.strip("\n").splitlines() if not line.startswith(("# Author", "# License"))]
        text = "\n".join(line.rstrip() for line in lines).strip("\n")
        if text and len(text) <= MAX_CODE_CHARS:
            self.page.blocks.append((text, ""))
        self._text = ""


def read_page(path: Path, root: Path, out: Path) -> dict[str, Any]:
    """The record of one page of the gallery; its pictures are copied to out/images. Empty where it shows none."""
    parser = GalleryParser()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    kept = _Page()
    for text, source in parser.page.blocks:
        picture = (path.parent / source).resolve()
        if text is not None:
            kept.blocks.append((text, ""))
        elif picture.suffix.lower() in PICTURES and picture.is_relative_to(root.resolve()) and picture.is_file():
            write_atomically(out / "images" / picture.name, picture.read_bytes())
            kept.blocks.append((None, f"images/{picture.name}"))
    has_both = {text is None for text, _ in kept.blocks} == {True, False}
    return kept.record(path.as_posix().rpartition("auto_examples/")[2].removesuffix(".html")) if has_both else {}


def find_pages(root: Path) -> Iterator[Path]:
    """The pages of the gallery that hold an example, in name order; its tables of contents and timings do not."""
    for path in sorted(root.rglob("auto_examples/**/*.html")):
        if EXAMPLE in path.read_text(encoding="utf-8"):
            yield path


def make(root: Path, out: Path) -> Summary:
    """Writes out/pages.jsonl and out/images from an unpacked documentation. Raises: DataError where it has no page."""
    summary, lines = Summary(), []
    for path in find_pages(root):
        record = read_page(path, root, out)
        if not record:
            summary.num_left_out += 1
            continue
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        summary.num_pages += 1
        summary.num_pictures += record["texts"].count(None)
        summary.num_chars += sum(len(text) for text in record["texts"] if text)
    if not lines:
        raise DataError(f"{root} holds no example with a picture. Is it what {PACKAGE} unpacks to?")
    write_atomically(out / "pages.jsonl", "".join(lines))
    return summary


def fetch(cache: Path) -> Path:
    """Downloads the package into a folder, unless it lies there. Raises: DataError."""
    cache.mkdir(parents=True, exist_ok=True)
    if not list(cache.glob(f"{PACKAGE}_*.deb")):
        _run(
            ["apt-get", "download", PACKAGE], cache, "Fetch the package on a Debian machine and give it as --deb FILE."
        )
    return max(cache.glob(f"{PACKAGE}_*.deb"))


def unpack(deb: Path, folder: Path) -> None:
    if not deb.is_file():
        raise DataError(f"no package at {deb}.")
    _run(["dpkg-deb", "-x", str(deb.resolve()), str(folder)], folder, "It unpacks the package; Debian's `dpkg` has it.")


def _run(command: list[str], folder: Path, remedy: str) -> None:
    if shutil.which(command[0]) is None:
        raise DataError(f"{command[0]} is not on this machine. {remedy}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"{' '.join(command)} failed: {done.stderr.strip()}. {remedy}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--deb", type=Path, help="the package, where it lies here already")
    parser.add_argument("--cache", type=Path, help="folder to keep the package in (default: OUT/package)")
    arguments = parser.parse_args()
    try:
        deb = arguments.deb or fetch(arguments.cache or arguments.out / "package")
        with tempfile.TemporaryDirectory() as folder:
            unpack(deb, Path(folder))
            summary = make(Path(folder), arguments.out)
    except DataError as error:
        raise SystemExit(str(error)) from error
    print(
        f"{arguments.out}: {summary.num_pages} pages, {summary.num_pictures} pictures, {summary.num_chars:,} "
        f"characters; {summary.num_left_out} examples without a picture left out"
    )


if __name__ == "__main__":
    main()

"""Where the data of a shard lies. A shard is `NNNNN.tar`, or `NNNNN.link`: a small JSON that names data which stays
where it is: a tar on disk or behind a URL, or a stretch of rows of a JSON table whose pictures lie in a folder.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rebus.config import Place
from rebus.errors import DataError, StrangerError
from rebus.fingerprint import write_atomically
from rebus.storage import file_version

SUFFIX = ".link"


@dataclass(frozen=True)
class Link:
    """data: path or URL of the file that offsets and lengths of the index refer to.

    layout: `tar`, members of a sample side by side; `rows`, a JSON object a sample. source: for rows, the module of
    shards.sources that reads one. root: for rows, the folder that picture paths start from. version: of `data` when it
    was indexed (storage.file_version).
    """

    data: str
    layout: Literal["tar", "rows"] = "tar"
    source: str = ""
    root: str = ""
    version: tuple[object, ...] = ()


def write_link(shard: Path, link: Link) -> None:
    write_atomically(shard, json.dumps(asdict(link), indent=1) + "\n")


def read_link(shard: Place) -> Link:
    """The link of a shard; a tar, on disk or behind a URL, links to itself.

    Raises: DataError, StrangerError where the data changed since.
    """
    if Path(shard).suffix != SUFFIX:
        return Link(str(shard))
    try:
        body = json.loads(Path(shard).read_text(encoding="utf-8"))
        link = Link(**{**body, "version": tuple(body["version"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{shard} is no link ({error}). Delete it and run `rebus shards` again.") from error
    found = file_version(link.data)
    if link.version != found:
        raise StrangerError(
            f"{link.data} is not what {shard} was made of: it was {link.version}, it is {found}. "
            "Run `rebus shards` again."
        )
    return link

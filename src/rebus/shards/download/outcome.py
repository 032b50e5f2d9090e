"""What became of one row of the table."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from rebus.records import Image
from rebus.shards.assemble import assemble, uid_of
from rebus.shards.damage import DamagedSampleError
from rebus.shards.download.config import Download
from rebus.shards.download.reasons import OTHER_HASH
from rebus.shards.download.resize import exif_of, resize
from rebus.shards.sources.urls import UrlRow

SUCCESS, NOT_FETCHED, NOT_RESIZED = "success", "failed_to_download", "failed_to_resize"
"""The words of img2dataset's column `status`."""


@dataclass(frozen=True)
class Outcome:
    """metadata: the json of the sample: the table's other columns and what is known of the picture. reason, detail:
    of a failure. image: encoded, empty where there is none."""

    key: str
    number: int
    status: str
    metadata: dict[str, Any]
    image: bytes = b""
    reason: str = ""
    detail: str = ""

    @property
    def caption(self) -> str:
        return self.metadata["caption"] or ""

    def members(self, extension: str) -> dict[str, bytes]:
        """Of a success, as they stand in the tar."""
        body = json.dumps(self.metadata, ensure_ascii=False).encode("utf-8", "replace")
        return {extension: self.image, "txt": self.caption.encode("utf-8", "replace"), "json": body}


def refuse_row(row: UrlRow, shard: str) -> None:
    """Raises: DamagedSampleError for rows that no picture could make a sample of, before anybody is asked."""
    if row.damage is not None:
        raise row.damage
    members = {} if row.caption is None else {"txt": row.caption.encode("utf-8", "replace")}
    assemble(row.key, shard, members, metadata={}, images=[Image(2, 2)], uid="0" * 32)


def failure(row: UrlRow, error: DamagedSampleError, status: str = NOT_FETCHED) -> Outcome:
    message = f"{error.reason}: {error.detail}".rstrip(": ")
    about = _metadata(row, status) | {"error_message": message}
    return Outcome(row.key, row.number, status, about, reason=error.reason, detail=error.detail)


def picture_outcome(row: UrlRow, body: bytes, options: Download, shard: str) -> Outcome:
    """Checks, resizes and describes what came. CPU work: for a thread."""
    try:
        _verify(row, body, options)
    except DamagedSampleError as error:
        return failure(row, error)
    try:
        found = resize(body, options)
        about = _metadata(row, SUCCESS) | {
            "width": found.size[0],
            "height": found.size[1],
            "original_width": found.original_size[0],
            "original_height": found.original_size[1],
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        if options.extract_exif:
            about["exif"] = exif_of(body)
        return _named(Outcome(row.key, row.number, SUCCESS, about, found.data), options.encode_format, shard)
    except DamagedSampleError as error:
        return failure(row, error, NOT_RESIZED)


def _named(outcome: Outcome, extension: str, shard: str) -> Outcome:
    """With its uid: the table's, or one made from what the sample holds. Raises: DamagedSampleError."""
    members = outcome.members(extension)
    uid = uid_of(outcome.metadata, members)
    if outcome.metadata.get("uid") not in (None, uid):
        outcome.metadata["source_uid"] = outcome.metadata["uid"]
    outcome.metadata["uid"] = uid
    assemble(outcome.key, shard, members, metadata=outcome.metadata)
    return outcome


def _metadata(row: UrlRow, status: str) -> dict[str, Any]:
    own = {"key": row.key, "url": row.url, "caption": row.caption, "status": status, "error_message": None}
    return {**row.carried, **own, **dict.fromkeys(("width", "height", "original_width", "original_height", "sha256"))}


def _verify(row: UrlRow, body: bytes, options: Download) -> None:
    if options.verify_hash is None:
        return
    wanted = str(row.record.get(options.verify_hash.column) or "").strip().lower()
    found = hashlib.new(options.verify_hash.kind, body).hexdigest()
    if wanted != found:
        raise DamagedSampleError(OTHER_HASH, f"the table says {wanted or 'nothing'}, the answer is {found}")

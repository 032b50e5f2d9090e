"""A table of URLs against a real server: what comes, what does not and why, and what is written."""

import csv
import hashlib
import io
import json
import tarfile
from pathlib import Path

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rebus.config import check_recipe, load_recipe
from rebus.errors import ConfigError, DataError
from rebus.fingerprint import read_manifest
from rebus.shards import damage
from rebus.shards.config import ShardsRecipe
from rebus.shards.download import reasons
from rebus.shards.read import iterate, read_quarantine
from rebus.shards.run import run
from web_server import WebServer, encoded, serving

UID = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def web():
    with serving() as server:
        yield server


def recipe(folder: Path, table: Path | str, download: dict | None = None, **changes) -> ShardsRecipe:
    tree = {"source": "urls", "input": str(table), "out": str(folder / "out"), "samples_per_shard": 100}
    options = {"allow_private": True, "timeout": 5, "backoff": 0, "concurrency_per_host": 16, "retries": 2}
    return check_recipe(ShardsRecipe, tree | changes | {"download": options | (download or {})}, "test")


def write_table(path: Path, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def fetch(folder: Path, web: WebServer, paths: list[str], download: dict | None = None, **changes) -> list[dict]:
    """Downloads these paths of the server; returns the metadata of every row."""
    rows = [{"url": web.base + path, "caption": f"of {path}"} for path in paths]
    run(recipe(folder, write_table(folder / "table.parquet", rows), download, **changes))
    return metadata(folder / "out")


def metadata(out: Path) -> list[dict]:
    files = sorted(path for path in out.glob("*.parquet") if ".index" not in path.name)
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def members(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as archive:
        return {one.name: archive.extractfile(one).read() for one in archive}


GOOD = ["/ok/1", "/png", "/webp", "/gif", "/bmp", "/zipped", "/busy", "/flaky", "/hops/3"]
BAD = {
    "/404": "HTTP 404",
    "/410": "HTTP 410",
    "/403": "HTTP 403",
    "/500": "HTTP 500",
    "/429": "HTTP 429",
    "/svg": reasons.SVG,
    "/html": reasons.HTML,
    "/empty": damage.ZERO_BYTE_IMAGE,
    "/garbage": damage.UNREADABLE_IMAGE,
    "/half": damage.UNDECODABLE_IMAGE,
    "/bomb": damage.BOMB,
    "/huge": reasons.TOO_MANY_BYTES,
    "/huge_said": reasons.TOO_MANY_BYTES,
    "/zip_bomb": reasons.TOO_MANY_BYTES,
    "/reset": reasons.BROKEN_OFF,
    "/short": reasons.BROKEN_OFF,
    "/loop": reasons.TOO_MANY_REDIRECTS,
    "/hops/9": reasons.TOO_MANY_REDIRECTS,
    "/to/ftp://127.0.0.1/x.jpg": reasons.BAD_URL,
    "/to/file:///etc/passwd": reasons.BAD_URL,
    "/robots/noai": reasons.ROBOTS,
    "/robots/all,%20NoIndex": reasons.ROBOTS,
    "/robots/rebus:%20noimageai": reasons.ROBOTS,
}
ALL = [*GOOD, "/robots/otherbot:%20noai", "/robots/nofollow", *BAD]


def test_every_answer_has_its_outcome(tmp_path: Path, web: WebServer):
    rows = fetch(tmp_path, web, ALL, {"max_bytes": 2**20})
    found = {row["url"].removeprefix(web.base): row["reason"] for row in rows}
    assert found == dict.fromkeys(ALL) | BAD
    summary = json.loads((tmp_path / "out" / "00000_stats.json").read_text())
    assert summary["count"] == len(ALL)
    assert summary["successes"] == len(GOOD) + 2
    assert summary["failed_to_resize"] == 6  # svg, html, empty, garbage, half, bomb
    assert summary["failed_to_download"] == len(BAD) - 6
    assert summary["status_dict"]["HTTP 404"] == 1
    quarantine = read_quarantine(tmp_path / "out" / "00000.tar")
    assert {one.reason for one in quarantine} == set(BAD.values())
    assert all(web.base in one.detail for one in quarantine)


def test_what_may_have_passed_is_asked_again_and_nothing_else(tmp_path: Path, web: WebServer):
    fetch(tmp_path, web, ALL, {"max_bytes": 2**20})
    thrice = {"/500", "/429", "/reset", "/short"}
    twice = {"/busy", "/flaky"}
    for path in {*ALL} - {"/hops/3", "/hops/9", "/loop"}:
        assert web.counts[path] == (3 if path in thrice else 2 if path in twice else 1), path
    assert web.counts["/loop"] == 6  # the first and five redirects


def test_samples_are_those_of_img2dataset(tmp_path: Path, web: WebServer):
    more = {"similarity": 0.25, "face_bboxes": [[0.1]]}
    rows = [{"url": f"{web.base}/ok/1", "caption": "Ein Gemälde", "uid": UID} | more]
    rows += [{"url": f"{web.base}/png", "caption": "two", "uid": "mine", "similarity": None, "face_bboxes": []}]
    run(recipe(tmp_path, write_table(tmp_path / "table.parquet", rows), {"extract_exif": True}, samples_per_shard=10))
    found = members(tmp_path / "out" / "00000.tar")
    assert list(found) == [f"00000{number}.{kind}" for number in (0, 1) for kind in ("jpg", "txt", "json")]
    assert found["000000.jpg"] == encoded("JPEG", (41, 30)), "bytes that need no change stay"
    assert PIL.Image.open(io.BytesIO(found["000001.jpg"])).format == "JPEG"
    assert found["000000.txt"].decode() == "Ein Gemälde"
    assert json.loads(found["000000.json"]) == {
        "uid": UID,
        "similarity": 0.25,
        "face_bboxes": [[0.1]],
        "key": "000000",
        "url": f"{web.base}/ok/1",
        "caption": "Ein Gemälde",
        "status": "success",
        "error_message": None,
        "width": 41,
        "height": 30,
        "original_width": 41,
        "original_height": 30,
        "sha256": hashlib.sha256(encoded("JPEG", (41, 30))).hexdigest(),
        "exif": "{}",
    }
    second = json.loads(found["000001.json"])
    assert second["source_uid"] == "mine"
    assert len(second["uid"]) == 32
    samples = [sample for _, sample in iterate(tmp_path / "out" / "00000.tar")]
    assert [sample.uid for sample in samples] == [UID, second["uid"]]
    assert read_manifest(tmp_path / "out", "shards").facts["num_samples"] == 2


def test_names_have_as_many_digits_as_asked_for(tmp_path: Path, web: WebServer):
    rows = fetch(tmp_path, web, ["/ok/1", "/404", "/ok/2"], {"digits": 8}, samples_per_shard=2)
    assert [row["key"] for row in rows] == ["000000000", "000000001", "000000010"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["00000000.tar", "00000001.tar"]
    with pytest.raises(DataError, match=r"download\.digits"):
        fetch(tmp_path, web, ["/ok/1"] * 11, {"digits": 1}, samples_per_shard=1, out=str(tmp_path / "other"))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl"])
def test_every_form_of_table(tmp_path: Path, web: WebServer, suffix: str):
    rows = [{"URL": f"{web.base}/ok/{number}", "TEXT": f'number "{number}"', "place": "Ulm"} for number in range(5)]
    table = tmp_path / f"table.{suffix}"
    if suffix in ("csv", "tsv"):
        with open(table, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if suffix == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    else:
        table.write_text(json.dumps(rows) if suffix == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    assert run(recipe(tmp_path, table, samples_per_shard=2)).num_samples == 5
    found = metadata(tmp_path / "out")
    assert [(row["url"], row["caption"], row["place"]) for row in found] == [tuple(row.values()) for row in rows]


def test_a_folder_of_parquet_and_row_groups(tmp_path: Path, web: WebServer):
    for name, first in (("b.parquet", 7), ("a.parquet", 0)):
        rows = [{"url": f"{web.base}/ok/{first + number}", "text": f"{first + number}"} for number in range(7)]
        (tmp_path / "tables").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "tables" / name, row_group_size=3)
    assert run(recipe(tmp_path, tmp_path / "tables", samples_per_shard=4)).num_shards == 4
    assert [row["caption"] for row in metadata(tmp_path / "out")] == [str(number) for number in range(14)]


def test_rows_that_can_be_no_sample_are_not_asked_for(tmp_path: Path, web: WebServer):
    rows = [
        {"url": f"{web.base}/ok/1", "caption": None, "wanted": damage.MISSING_CAPTION},
        {"url": f"{web.base}/ok/2", "caption": "  ", "wanted": damage.EMPTY_CAPTION},
        {"url": f"{web.base}/ok/3", "caption": "<image> x", "wanted": damage.PLACEHOLDER_IN_CAPTION},
        {"url": None, "caption": "x", "wanted": reasons.BAD_URL},
        {"url": "no url", "caption": "x", "wanted": reasons.BAD_URL},
        {"url": "ftp://127.0.0.1/x", "caption": "x", "wanted": reasons.BAD_URL},
        {"url": "http://127.0.0.1:99999/x", "caption": "x", "wanted": reasons.BAD_URL},
        {"url": "http:///x", "caption": "x", "wanted": reasons.BAD_URL},
        {"url": f"{web.base}/ok/4", "caption": "good", "wanted": None},
    ]
    run(recipe(tmp_path, write_table(tmp_path / "table.parquet", rows)))
    assert [row["reason"] for row in metadata(tmp_path / "out")] == [row["wanted"] for row in rows]
    assert web.counts == {"/ok/4": 1}


def test_hashes_are_verified(tmp_path: Path, web: WebServer):
    right = hashlib.md5(encoded()).hexdigest()
    rows = [{"url": f"{web.base}/ok/0", "caption": "x", "md5": value} for value in (right.upper(), "0" * 32, None)]
    options = {"verify_hash": {"column": "md5", "kind": "md5"}}
    run(recipe(tmp_path, write_table(tmp_path / "table.parquet", rows), options))
    assert [row["reason"] for row in metadata(tmp_path / "out")] == [None, reasons.OTHER_HASH, reasons.OTHER_HASH]


def test_a_shard_of_nothing_but_failures_is_a_shard(tmp_path: Path, web: WebServer):
    fetch(tmp_path, web, ["/404", "/404", "/ok/1"], samples_per_shard=2)
    assert members(tmp_path / "out" / "00000.tar") == {}
    assert [sample.key for _, sample in iterate(tmp_path / "out" / "00001.tar")] == ["000010"]


def test_nothing_at_all_came(tmp_path: Path, web: WebServer):
    with pytest.raises(DataError, match="none of 1 samples is usable"):
        fetch(tmp_path, web, ["/404"])
    pq.write_table(pa.table({"url": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="holds no row"):
        run(recipe(tmp_path, tmp_path / "empty.parquet", out=str(tmp_path / "none")))


def test_missing_columns_are_named(tmp_path: Path, web: WebServer):
    table = write_table(tmp_path / "table.parquet", [{"urls": web.base, "words": "x"}])
    with pytest.raises(DataError, match=r"no column 'url'.*did you mean 'urls'.*download\.url_column"):
        run(recipe(tmp_path, table))
    with pytest.raises(DataError, match=r"no column 'caption'.*download\.caption_column"):
        run(recipe(tmp_path, table, {"url_column": "urls"}))
    options = {"url_column": "urls", "caption_column": "words", "verify_hash": {"column": "md5", "kind": "md5"}}
    with pytest.raises(DataError, match=r"no column 'md5'.*verify_hash"):
        run(recipe(tmp_path, table, options))


def test_another_recipe_never_removes_a_download(tmp_path: Path, web: WebServer):
    fetch(tmp_path, web, ["/ok/1"])
    before = (tmp_path / "out" / "00000.tar").read_bytes()
    with pytest.raises(DataError, match="another recipe downloaded"):
        fetch(tmp_path, web, ["/ok/1"], {"image_size": 64})
    assert (tmp_path / "out" / "00000.tar").read_bytes() == before
    fetch(tmp_path, web, ["/ok/1"], {"timeout": 9, "concurrency": 3}, max_bad_share=0.5)
    assert web.counts["/ok/1"] == 1, "how it is fetched does not make it another download"


def test_options_that_make_no_sense_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="png"):
        recipe(tmp_path, "t.parquet", {"encode_format": "png", "encode_quality": 95})
    with pytest.raises(ConfigError, match="cannot share 16 requests"):
        recipe(tmp_path, "t.parquet", num_workers=17)
    with pytest.raises(ConfigError, match="downloads nothing"):
        recipe(tmp_path, "t.csv", source="pairs")


@pytest.mark.parametrize("name", ["table.parquet", "table.csv", "folder"])
def test_tables_in_a_bucket(tmp_path: Path, web: WebServer, s3, name: str):
    rows = [{"url": f"{web.base}/ok/{number}", "caption": f"{number}"} for number in range(5)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    text = "".join(f"{row['url']},{row['caption']}\n" for row in [{"url": "url", "caption": "caption"}, *rows])
    s3.put("t/table.parquet", buffer.getvalue())
    s3.put("t/table.csv", text.encode())
    s3.put("t/folder/b.parquet", buffer.getvalue())
    assert run(recipe(tmp_path, f"s3://bucket/t/{name}", samples_per_shard=2)).num_samples == 5
    assert [row["caption"] for row in metadata(tmp_path / "out")] == list("01234")
    assert run(recipe(tmp_path, f"s3://bucket/t/{name}", samples_per_shard=2)).num_shards == 3
    assert sum(web.counts.values()) == 5


def test_the_recipes_are_accepted():
    folder = Path(__file__).parents[2] / "recipes"
    found = [load_recipe(ShardsRecipe, path) for path in sorted(folder.rglob("download_*.yaml"))]
    assert [one.source for one in found] == ["urls"] * 3
    assert {one.rows_per_shard for one in found} == {10_000}

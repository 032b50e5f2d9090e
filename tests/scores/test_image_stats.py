"""Statistics of pictures against values worked out by hand and the formulas as first written; the perceptual hash
against what re-encoding and scaling do to a picture."""

import io

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from rebus.scores.decode import Decoded
from rebus.scores.perceptual import perceptual_hash
from rebus.scores.scorers import image_stats
from rebus.scores.tables import concatenate, table_path, write_table


def measure(*pictures: PIL.Image.Image | None) -> dict[str, np.ndarray]:
    opened = image_stats.open_scorer(image_stats.Options())
    assert opened.pictures
    looked = [opened.look(Decoded("0" * 32, "key", "", None if one is None else b"bytes", one)) for one in pictures]
    return opened.measure(looked)


def photo(seed: int, size: tuple[int, int] = (512, 384)) -> PIL.Image.Image:
    """Random colours at several scales, the fine ones fainter, as in a photograph."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0], 3))
    for side in (3, 6, 12, 24, 96):
        small = PIL.Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8))
        total += np.asarray(small.resize(size, PIL.Image.Resampling.BICUBIC), dtype=np.float64) / side**0.8
    total = (total - total.min()) / (total.max() - total.min())
    return PIL.Image.fromarray((total * 255).astype(np.uint8))


def encoded(picture: PIL.Image.Image, kind: str, **options) -> PIL.Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return PIL.Image.open(io.BytesIO(buffer.getvalue()))


def num_differing(one: PIL.Image.Image, other: PIL.Image.Image) -> int:
    return (perceptual_hash(one.convert("L")) ^ perceptual_hash(other.convert("L"))).bit_count()


def test_statistics_of_known_pictures():
    flat = PIL.Image.new("RGB", (20, 10), (200, 200, 200))
    halves = PIL.Image.new("RGB", (4, 8), "black")
    halves.paste((255, 255, 255), (0, 0, 4, 4))
    columns = measure(flat, halves)
    assert columns["width"].tolist() == [20, 4]
    assert columns["height"].tolist() == [10, 8]
    assert columns["aspect"].tolist() == [2, 2]
    assert columns["entropy"].tolist() == pytest.approx([0, 1])
    # Only the two rows beside the edge differ from their neighbours: by -255 and +255, in 2 of the 6 inner rows.
    assert columns["sharpness"].tolist() == pytest.approx([0, 255**2 / 3])
    assert columns["flatness"].tolist() == [1, 0.5]
    assert columns["white_border"].tolist() == [0, 0.5]


def test_white_border_is_what_lies_outside_the_box_of_the_rest():
    framed = PIL.Image.new("RGB", (20, 10), "white")
    framed.paste((0, 0, 200), (5, 2, 15, 7))
    white = PIL.Image.new("RGB", (9, 9), (250, 250, 250))
    speck = PIL.Image.new("RGB", (10, 10), "black")
    speck.putpixel((4, 4), (255, 255, 255))  # white inside is no border
    assert measure(framed, white, speck)["white_border"].tolist() == pytest.approx([1 - 50 / 200, 1, 0])


def test_flatness_forgives_what_a_jpeg_does_to_a_flat_picture():
    noisy = np.full((64, 64, 3), 120) + np.random.default_rng(0).integers(-4, 5, (64, 64, 1))
    columns = measure(encoded(PIL.Image.fromarray(noisy.astype(np.uint8)), "JPEG", quality=60).convert("RGB"), photo(1))
    assert columns["flatness"][0] == 1
    assert columns["flatness"][1] < 0.5


@pytest.mark.parametrize("size", [(512, 512), (333, 517), (4, 8), (2, 9), (1, 1), (1000, 31)])
def test_entropy_and_sharpness_are_those_of_the_first_formulas_to_the_bit(size: tuple[int, int]):
    """Tables made before must equal tables made now: no scaled-down picture, no other order of sums."""
    picture = photo(7, size)
    grey = np.asarray(picture.convert("L"))
    shares = np.bincount(grey.ravel(), minlength=256) / grey.size
    shares = shares[shares > 0]
    g = grey.astype(np.float32)
    laplacian = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * g[1:-1, 1:-1]
    columns = measure(picture)
    assert columns["entropy"][0] == np.float32(-(shares * np.log2(shares)).sum())
    assert columns["sharpness"][0] == (laplacian.var() if min(size) >= 3 else 0)


def test_a_sample_without_a_picture_has_no_values_in_the_table(tmp_path):
    names = [("0" * 32, "without"), ("1" * 32, "with")]
    write_table(tmp_path, "image_stats", tmp_path / "0.tar", names, concatenate([measure(None), measure(photo(2))]))
    table = pq.read_table(table_path(tmp_path, "image_stats", tmp_path / "0.tar"))
    assert table["phash"].null_count == 1
    assert str(table.schema.field("phash").type) == "uint64"
    assert table["phash"][1].as_py() == perceptual_hash(photo(2).convert("L"))
    for name in ("width", "entropy", "sharpness", "flatness", "white_border"):
        without, present = table[name].to_numpy()
        assert np.isnan(without)
        assert np.isfinite(present)


@pytest.mark.parametrize("seed", range(8))
def test_hash_survives_scaling_and_encoding(seed: int):
    """Measured over 60 pictures: at most 3 bits of 64 move."""
    picture = photo(seed)
    half = picture.resize((256, 192))
    assert num_differing(picture, encoded(picture, "PNG")) == 0
    assert num_differing(picture, encoded(picture, "JPEG", quality=50)) <= 4
    assert num_differing(picture, half) <= 4
    assert num_differing(picture, encoded(half, "JPEG", quality=50)) <= 4


def test_hash_tells_pictures_apart():
    hashes = [perceptual_hash(photo(seed).convert("L")) for seed in range(20)]
    distances = [(one ^ other).bit_count() for place, one in enumerate(hashes) for other in hashes[:place]]
    assert min(distances) > 12
    assert np.mean(distances) == pytest.approx(32, abs=3)  # as of coins


def test_hash_of_a_flat_or_mirrored_picture_is_not_made_of_rounding():
    """Half of a mirrored picture's coefficients are 0 but for rounding, which a grey level of noise must not show."""
    rng = np.random.default_rng(3)
    assert perceptual_hash(PIL.Image.new("L", (100, 40), 77)) == 0
    left = np.asarray(photo(3, (128, 128)).convert("L"))
    mirrored = np.concatenate([left, left[:, ::-1]], axis=1).clip(2, 253)
    noisy = mirrored + rng.integers(-1, 2, mirrored.shape)
    pictures = [PIL.Image.fromarray(one.astype(np.uint8)) for one in (mirrored, noisy)]
    assert num_differing(*pictures) <= 2


def test_hash_is_the_cosine_transform_written_out():
    """Bit by bit from the definition, on a picture that needs no resampling."""
    picture = photo(5, (32, 32)).convert("L")
    values = np.asarray(picture, dtype=np.float64)
    place = np.arange(32)
    waves = [np.cos(np.pi * k * (2 * place + 1) / 64) for k in range(1, 9)]
    low = np.array([[(values * np.outer(down, across)).sum() / 16 for across in waves] for down in waves])
    bits = "".join("1" if one else "0" for one in (low > np.median(low) + 1).ravel())
    assert perceptual_hash(picture) == int(bits, 2)

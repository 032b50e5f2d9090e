"""Pair similarity finds planted mismatches, and keeps its promise that no head judges a pair it was fitted on."""

import numpy as np
import pytest

from rebus.errors import DataError
from rebus.pictures.config import FixedConfig
from rebus.scores.scorers import pair_similarity
from rebus.towers.config import TowerConfig


@pytest.fixture
def options(tmp_path) -> pair_similarity.Options:
    return pair_similarity.Options(
        tower=TowerConfig(kind="tiny"), image=FixedConfig(), language=tmp_path, num_folds=4, text_dims=8
    )


def noisy_pool(seed: int, num_pairs: int = 240) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Texts that follow linearly from their pictures, a fifth of them swapped. Returns the pool and who was swapped."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(num_pairs, 16))
    text = image @ rng.normal(size=(16, 8)) + 0.1 * rng.normal(size=(num_pairs, 8))
    swapped = rng.choice(num_pairs, num_pairs // 5, replace=False)
    text[swapped] = text[np.roll(swapped, 1)]
    return {"image": image, "text": text}, np.isin(np.arange(num_pairs), swapped)


@pytest.mark.parametrize("seed", range(3))
def test_pair_similarity_ranks_swapped_pairs_below(options, seed):
    pool, is_swapped = noisy_pool(seed)
    z = pair_similarity.judge(options, pool)["z"]
    auc = (z[~is_swapped][:, None] > z[is_swapped][None]).mean()
    assert auc > 0.97


def test_pair_similarity_of_pairs_at_random_is_chance(options):
    """A head that had seen its pair would score real pairs above others even where nothing connects them."""
    rng = np.random.default_rng(5)
    pool = {"image": rng.normal(size=(400, 64)), "text": rng.normal(size=(400, 8))}
    z = pair_similarity.judge(options, pool)["z"]
    assert abs(z.mean()) < 3 / np.sqrt(400)


def test_no_head_judges_a_pair_it_was_fitted_on(options):
    """Another text for pair 0 must not move what the head of its fold foretells for its picture."""
    pool, _ = noisy_pool(1)
    text = pair_similarity._principal(options, pool["text"])
    before = pair_similarity._cross_fitted_similarity(options, pool["image"], text)
    text[0] = text[0][::-1] * 50
    after = pair_similarity._cross_fitted_similarity(options, pool["image"], text)
    np.testing.assert_allclose(before[0, 1:], after[0, 1:], rtol=1e-9)
    folds = np.random.default_rng(options.seed).permutation(240) % options.num_folds
    other = np.flatnonzero(folds != folds[0])[0]
    assert not np.allclose(before[other, 1:], after[other, 1:])


def test_pair_similarity_refuses_a_pool_too_small_to_fold(options):
    with pytest.raises(DataError, match="16 to 20,000 pairs, this pool has 3"):
        pair_similarity.judge(options, {"image": np.zeros((3, 2)), "text": np.zeros((3, 2))})

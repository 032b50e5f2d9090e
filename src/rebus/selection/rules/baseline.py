"""DataComp's baselines (Gadre et al. 2023, section 4) and those that Open-Qwen2VL added, by name.

docs/select.md tells for each what the original does, where the original errs, and what is done here.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from rebus.config import Config
from rebus.errors import ConfigError, nearest
from rebus.fingerprint import file_fingerprint
from rebus.selection.captions import hold_a_word, read_words
from rebus.selection.centroids import assign, read_centroids, read_targets
from rebus.selection.clusters import known_rows
from rebus.selection.rules.column import cut
from rebus.selection.view import Kept, View

LANGUAGE = {"language": "text_stats.language"}
TEXT = LANGUAGE | {"num_words": "text_stats.num_words", "num_chars": "text_stats.num_chars"}
SIZE = {"width": "width", "height": "height"}
PICTURE = {"image": "clip_l14.image"}
SIMILARITY = {"similarity": ""}  # by `arch`
HYGIENE = {"hygiene": "text_stats.hygiene"}
METRICS = ("image_text_matching", "object_detail_fulfillment", "caption_text_quality", "semantic_understanding")

BASELINES: dict[str, dict[str, str]] = {
    "no_filter": {},
    "basic_filter": TEXT | SIZE,
    "basic_filter_open_qwen2vl": SIZE,
    "text_based": LANGUAGE,
    "image_based": TEXT | PICTURE,
    "image_based_intersect_clip_score": TEXT | PICTURE | SIMILARITY,
    "clip_score": SIMILARITY,
    "laion2b": LANGUAGE | {"similarity": "clip_b32.similarity"},
    **{metric: {"score": f"mlm_filter.{metric}_hard"} for metric in METRICS},
    "quality_score": {"score": "imported.quality_score"} | HYGIENE,
    "dfn_clip_score": {"score": "imported.dfn_clipscore"} | HYGIENE,
}
"""What each looks at, by the names that `columns:` of a recipe maps, and the columns where it maps nothing."""

ALIASES = {f"llava_{metric}_score": metric for metric in METRICS} | {"reward_quality_score": "quality_score"}
SCORED = {*METRICS, "quality_score", "dfn_clip_score", "clip_score", "image_based_intersect_clip_score"}
OF_ARCH = {"clip_score", "image_based_intersect_clip_score"}
FILES = {"text_based": {"words"}, "image_based": {"centroids", "targets"}}
FILES["image_based_intersect_clip_score"] = FILES["image_based"]
LAION_THRESHOLD = 0.28
MAX_TOO_SHORT = 5  # characters

Answer = tuple[NDArray[np.bool_], NDArray[np.bool_]]
"""[n] what meets a test, [n] what has the value that it takes."""

Test = Callable[["Rule", View], Answer]


class Rule(Config):
    """baseline: a name, the original's own accepted too. columns: where the pool has what a baseline looks at.

    threshold or fraction (0..1, of the samples with a score), exactly one, for what compares a score. arch: b32 or
    l14, the CLIP model of the original; stands for the column clip_b32.similarity or clip_l14.similarity. words:
    of text_based, one a line. centroids: of image_based, .npy of floats [K, D]; targets: the wanted clusters or
    embeddings of a target set. hygiene: false leaves out the caption rules of quality_score and dfn_clip_score.
    """

    baseline: str
    threshold: float | None = None
    fraction: float | None = Field(None, ge=0, le=1)
    arch: Literal["b32", "l14"] | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    words: Path | None = None
    centroids: Path | None = None
    targets: Path | None = None
    hygiene: bool = True

    @field_validator("baseline")
    @classmethod
    def _check_name(cls, name: str) -> str:
        own = ALIASES.get(name, name)
        if own not in BASELINES:
            raise ValueError(f"no baseline of that name{nearest(name, BASELINES)}; there are {', '.join(BASELINES)}")
        return own

    @model_validator(mode="after")
    def _check_options(self) -> "Rule":
        name, needs = self.baseline, BASELINES[self.baseline]
        num_cuts = (self.threshold is not None) + (self.fraction is not None)
        if num_cuts != (name in SCORED):
            words = "exactly one of threshold and fraction" if name in SCORED else "neither threshold nor fraction"
            raise ValueError(f"{name} takes {words}; {num_cuts or 'none'} given")
        strange = sorted(set(self.columns) - set(needs))
        if strange:
            raise ValueError(f"{name} looks at no {', '.join(strange)}; it looks at {', '.join(needs) or 'no column'}")
        num_similarities = (self.arch is not None) + ("similarity" in self.columns)
        if name in OF_ARCH and num_similarities != 1:
            raise ValueError(f"{name} takes `arch: b32` or `arch: l14`, or else `columns: {{similarity: ...}}`")
        if name not in OF_ARCH and self.arch is not None:
            raise ValueError(f"{name} takes no `arch`")
        self._check_files(FILES.get(name, set()))
        return self

    def _check_files(self, wanted: set[str]) -> None:
        for file in ("words", "centroids", "targets"):
            if (getattr(self, file) is not None) != (file in wanted):
                raise ValueError(f"{self.baseline} {'needs' if file in wanted else 'takes no'} `{file}`")

    def place(self, label: str) -> str:
        """The column of the pool that a label means."""
        if label == "similarity" and self.arch is not None:
            return f"clip_{self.arch}.similarity"
        return self.columns.get(label, BASELINES[self.baseline][label])

    @property
    def labels(self) -> list[str]:
        return [label for label in BASELINES[self.baseline] if label != "hygiene" or self.hygiene]


def columns(rule: Rule) -> list[str]:
    return [rule.place(label) for label in rule.labels if label not in PICTURE]


def vectors(rule: Rule) -> list[str]:
    return [rule.place(label) for label in rule.labels if label in PICTURE]


def inputs(rule: Rule) -> dict[str, str]:
    files = {"words": rule.words, "centroids": rule.centroids, "targets": rule.targets}
    return {name: file_fingerprint(path) for name, path in files.items() if path is not None}


def apply(rule: Rule, view: View) -> Kept:
    """Keeps what meets every test and drops what fails one; what is left over has no value that a test needs.

    A test is asked only about samples that failed none before it: pictures and captions are the dear ones.
    """
    kept = np.ones(len(view), dtype=bool)
    alive = np.arange(len(view))
    for test in _tests(rule):
        holds, has_value = test(rule, View(view.pool, view.rows[alive]))
        kept[alive] &= holds & has_value
        alive = alive[holds | ~has_value]
    undecided = np.zeros(len(view), dtype=bool)
    undecided[alive] = ~kept[alive]
    label = _score_label(rule)
    if label is None:
        return Kept(kept, undecided)
    boundary = None if rule.fraction is not None else _bound(rule, view)
    return Kept(kept, undecided, values=_column(rule, view, label), boundary=boundary)


def _tests(rule: Rule) -> list[Test]:
    """In the order in which they are asked. A fraction is of all samples, so a score comes first."""
    sizes = partial(_words_and_letters, min_words=3), partial(_words_and_letters, min_words=2)
    match rule.baseline:
        case "no_filter":
            return []
        case "basic_filter":
            return [_english, sizes[0], partial(_shape, min_side=200, max_aspect=3.0)]
        case "basic_filter_open_qwen2vl":
            return [partial(_shape, min_side=10, max_aspect=4.0)]
        case "text_based":
            return [_english, _names_an_entity]
        case "image_based":
            return [_english, sizes[1], _near_target]
        case "image_based_intersect_clip_score":
            return [_score, _english, sizes[1], _near_target]
        case "laion2b":
            return [_score, _english]
        case "quality_score" | "dfn_clip_score" if rule.hygiene:
            return [_score, _clean]
    return [_score]


def _english(rule: Rule, view: View) -> Answer:
    return _is_word(rule, view, "language", "en")


def _clean(rule: Rule, view: View) -> Answer:
    """Breaks none of the caption rules of the scorer text_stats."""
    return _is_word(rule, view, "hygiene", "")


def _is_word(rule: Rule, view: View, label: str, wanted: str) -> Answer:
    return _column(rule, view, label, of_words=True) == wanted, view.scored(rule.place(label))


def _words_and_letters(rule: Rule, view: View, min_words: int) -> Answer:
    """At least so many words, and more than 5 characters."""
    holds = (_column(rule, view, "num_words") >= min_words) & (_column(rule, view, "num_chars") > MAX_TOO_SHORT)
    return holds, view.scored(rule.place("num_words")) & view.scored(rule.place("num_chars"))


def _shape(rule: Rule, view: View, min_side: int, max_aspect: float) -> Answer:
    width, height = _column(rule, view, "width"), _column(rule, view, "height")
    short, long = np.minimum(width, height), np.maximum(width, height)
    has_size = view.scored(rule.place("width")) & view.scored(rule.place("height"))
    return (short >= min_side) & (long <= max_aspect * short), has_size


def _column(rule: Rule, view: View, label: str, of_words: bool = False) -> NDArray:
    """Raises: ConfigError where `columns:` maps a label to a column of the other kind."""
    values = view.column(rule.place(label))
    if (values.dtype == object) != of_words:
        kind = "words" if of_words else "numbers"
        raise ConfigError(f"{rule.baseline} takes {kind} as `{label}`; column '{rule.place(label)}' holds others.")
    return values


def _names_an_entity(rule: Rule, view: View) -> Answer:
    assert rule.words is not None  # the recipe was checked
    return hold_a_word(view, read_words(rule.words)), np.ones(len(view), dtype=bool)


def _near_target(rule: Rule, view: View) -> Answer:
    """Whether the nearest centroid is one of the target's."""
    assert rule.centroids is not None  # the recipe was checked
    assert rule.targets is not None
    centroids, name = read_centroids(rule.centroids), rule.place("image")
    is_target = np.zeros(len(centroids), dtype=bool)
    is_target[read_targets(rule.targets, centroids)] = True
    holds, has_vector = np.zeros(len(view), dtype=bool), np.zeros(len(view), dtype=bool)
    for places, block in view.iterate_vectors(name):
        known = known_rows(block)
        holds[places[known]] = is_target[assign(block[known], centroids, name)]
        has_vector[places[known]] = True
    return holds, has_vector


def _score_label(rule: Rule) -> str | None:
    return next((label for label in ("score", "similarity") if label in BASELINES[rule.baseline]), None)


def _score(rule: Rule, view: View) -> Answer:
    """At least the threshold, or of the highest fraction of all that have a score."""
    label = _score_label(rule) or ""
    scored, holds = view.scored(rule.place(label)), np.zeros(len(view), dtype=bool)
    measure, amount = ("min", _bound(rule, view)) if rule.fraction is None else ("keep_fraction", rule.fraction)
    holds[scored], _ = cut(measure, amount, _column(rule, view, label)[scored], view.uids[scored])
    return holds, scored


def _bound(rule: Rule, view: View) -> float:
    threshold = LAION_THRESHOLD if rule.threshold is None else rule.threshold
    return view.bound(rule.place(_score_label(rule) or ""), threshold)

"""Tiny random models of real architectures with a real tokenizer: what is read off the cache of keys and values equals
what whole passes say, whatever else is in the batch."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from test_mlm_digits import DIGITS, enumerated
from tokenizers import decoders, models, pre_tokenizers, trainers

from rebus.errors import ConfigError
from rebus.scores.decode import Decoded
from rebus.scores.mlm.digits import expectation, paths_to_ask
from rebus.scores.mlm.local import Prompt, collate
from rebus.scores.mlm.walk import Vocabulary, hear, read_vocabulary
from rebus.scores.scorers import mlm_filter
from tiny_families import SPECIAL, TEXT, TOWER, qwen2_vl
from tiny_pictures import encoded, photo

SIGNS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{% for part in m.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PROMPTS = {"image_text_matching": "match? {caption}", "caption_text_quality": "The text is {caption}. Good?"}
"""Short ones: a byte a token makes ours long."""
METRICS = tuple(PROMPTS)


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Byte-level, one token a digit, as Qwen's."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(r"\p{N}| ?[^\s\p{N}]+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SIGNS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the picture and its caption in the picture"] * 4, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<image>"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A LLaVA of SigLIP and Qwen2, saved with its processor as on the hub. It likes digits, and ends of lines."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    place = tmp_path_factory.mktemp("llava")
    tokenizer = make_tokenizer()
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**TOWER, image_size=56),
        text_config=transformers.Qwen2Config(**TEXT, **SPECIAL),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
    )
    torch.manual_seed(5)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    liked = tokenizer.convert_tokens_to_ids([*DIGITS, "Ċ"])
    model.lm_head.weight.data[liked] *= 4
    model.generation_config.eos_token_id = 2
    model.save_pretrained(place)
    processor = transformers.LlavaProcessor(
        SiglipImageProcessorPil(size={"height": 56, "width": 56}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="full",
        chat_template=CHATML,
    )
    processor.save_pretrained(place)
    for metric, prompt in PROMPTS.items():
        (place / f"{metric}.txt").write_text(prompt)
    return place


def sample(number: int) -> Decoded:
    picture = photo(20 + 3 * number, 30, seed=number)
    text = "a picture " * (number % 4) + f"of {number}"
    return Decoded(f"{number:032x}", str(number), text, encoded(picture), picture)


SAMPLES = [sample(number) for number in range(3)]


def options_for(folder: Path, **more) -> mlm_filter.Options:
    told = {"model": folder, "metrics": METRICS, "precision": "fp32", "device": "cpu", "min_mass": 0.0, **more}
    told["prompts"] = {metric: folder / f"{metric}.txt" for metric in METRICS}
    return mlm_filter.Options.model_validate(told)


def run(options: mlm_filter.Options, samples: list[Decoded]) -> dict[str, np.ndarray]:
    opened = mlm_filter.open_scorer(options)
    return opened.measure([opened.look(one) for one in samples])


class Whole:
    """A prompt's distributions, each by a pass over all ids so far, with no cache and no padding."""

    def __init__(self, model, inputs: dict[str, torch.Tensor], tokenizer) -> None:
        self.model, self.inputs, self.tokenizer = model, inputs, tokenizer
        self.known: dict[tuple[str, ...], torch.Tensor] = {}
        self.answer = tuple(self.greedy(4))

    def probabilities(self, path: tuple[str, ...]) -> torch.Tensor:
        if path not in self.known:
            paths = [(digit,) for digit in DIGITS] if path[:1] in zip(DIGITS) and len(path) == 1 else [path]
            self.known.update(zip(paths, self._pass(paths), strict=True))
        return self.known[path]

    def _pass(self, paths: list[tuple[str, ...]]) -> torch.Tensor:
        """The distributions [paths, vocabulary] behind paths of one length."""
        more = torch.tensor([self.tokenizer.convert_tokens_to_ids(list(path)) for path in paths], dtype=torch.long)
        given = {name: torch.cat([value] * len(paths)) for name, value in self.inputs.items()}
        words = {"input_ids": torch.cat([given["input_ids"], more], dim=1)}
        words["attention_mask"] = torch.ones_like(words["input_ids"])
        if "mm_token_type_ids" in given:
            words["mm_token_type_ids"] = torch.cat([given["mm_token_type_ids"], torch.zeros_like(more)], dim=1)
        with torch.no_grad():
            found = self.model(**{**given, **words}, use_cache=False).logits[:, -1]
        return found.double().softmax(-1)

    def greedy(self, length: int) -> list[str]:
        path: tuple[str, ...] = ()
        while len(path) < length:
            token = self.tokenizer.convert_ids_to_tokens(int(self.probabilities(path).argmax()))
            path = (*path, token)
            if token in ("<|im_end|>", "Ċ"):
                break
        return list(path)

    def following(self, path: tuple[str, ...]) -> dict[str, float] | None:
        """As the enumeration asks: every prefix of a number that can grow, and the greedy answer's own."""
        on_way = path == self.answer[: len(path)] and len(path) < len(self.answer)
        if path not in paths_to_ask(DIGITS) and not on_way:
            return None
        values = self.probabilities(path)
        found = {digit: float(values[self.tokenizer.convert_tokens_to_ids(digit)]) for digit in DIGITS}
        return {**found, "rest": 1 - sum(found.values())}


def check(expected: float, mass: float, whole: Whole) -> float:
    wanted = enumerated(functools.cache(whole.following), DIGITS)
    assert mass == pytest.approx(wanted.sum(), abs=1e-5)
    mean = float(wanted @ np.arange(101)) / wanted.sum()
    assert expected == pytest.approx(mean, abs=1e-4, rel=1e-5)
    return mean


def test_scores_equal_whole_passes(folder):
    """The prompt is put together anew here from the parts that the folder holds."""
    made = run(options_for(folder), SAMPLES)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    means = []
    for row, one in enumerate(SAMPLES):
        for metric, prompt in PROMPTS.items():
            said = prompt.format(caption=one.text.strip())
            text = f"<|im_start|>user\n<image>{said}<|im_end|>\n<|im_start|>assistant\n"
            inputs = dict(processor(text=[text], images=[one.picture], return_tensors="pt"))
            whole = Whole(model, inputs, processor.tokenizer)
            means.append(check(made[metric][row], made[f"{metric}_mass"][row], whole))
            ids = processor.tokenizer.convert_tokens_to_ids(whole.greedy(4))
            assert made[f"{metric}_raw"][row] == processor.tokenizer.decode(ids, skip_special_tokens=True)
    assert np.std(means) > 1, "the same score for all would hide a mistake"
    assert max(made[f"{METRICS[0]}_mass"]) > 0.1


@pytest.mark.parametrize("expectation", ["exact", "along"])
def test_the_batch_changes_nothing(folder, expectation):
    alone = run(options_for(folder, prompts_at_once=1, expectation=expectation), SAMPLES)
    together = run(options_for(folder, prompts_at_once=12, expectation=expectation), SAMPLES)
    assert set(alone) == set(together)
    for name, values in alone.items():
        if values.dtype == object:
            assert values.tolist() == together[name].tolist()
        else:
            np.testing.assert_allclose(together[name], values, rtol=1e-5, atol=1e-5)


def test_positions_of_pictures_in_the_plane(folder):
    """Qwen2-VL turns positions by the picture's height and width; two prompts of different length, one cache."""
    model = qwen2_vl().theirs
    tokenizer = make_tokenizer()
    model.lm_head.weight.data[tokenizer.convert_tokens_to_ids([*DIGITS, "Ċ"])] *= 4
    prompts = [_qwen_prompt(model, tokenizer, grid, words) for grid, words in (((4, 6), "its picture"), ((2, 8), "in"))]
    vocabulary = read_vocabulary(tokenizer, [2])
    heard = hear(model, collate(prompts), vocabulary, 4, exact=True)
    means = []
    for prompt, one in zip(prompts, heard, strict=True):
        whole = Whole(model, {**prompt.words, **prompt.sight}, tokenizer)
        means.append(check(*expectation(one.tree), whole))
        assert tokenizer.convert_ids_to_tokens(one.ids) == whole.greedy(4)
    assert abs(means[0] - means[1]) > 0.01


def _qwen_prompt(model, tokenizer, grid: tuple[int, int], words: str) -> Prompt:
    height, width = grid
    image = [model.config.image_token_id] * (height * width // 4)
    start, rest = tokenizer.encode("the caption"), tokenizer.encode(words)
    ids = torch.tensor([[*start, *image, *rest]])
    types = torch.tensor([[0] * len(start) + [1] * len(image) + [0] * len(rest)])
    generator = torch.Generator().manual_seed(height)
    pixels = torch.randn(height * width, 3 * 2 * 14 * 14, generator=generator)
    sight = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, height, width]])}
    return Prompt("", {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}, sight)


def test_kept_answers_need_no_model(folder, tmp_path, monkeypatch):
    options = options_for(folder, cache=tmp_path / "answers.sqlite")
    made = run(options, SAMPLES[:2])
    monkeypatch.setattr("rebus.scores.mlm.local.hear", None)
    again = run(options, SAMPLES[:2])
    for name, values in made.items():
        assert values.tolist() == again[name].tolist()


def test_a_sample_that_cannot_be_asked_about_costs_itself_alone(folder):
    strange = Decoded("0" * 32, "s", "<image><image> is <|im_end|>", SAMPLES[1].image_bytes, SAMPLES[1].picture)
    without = Decoded("1" * 32, "w", "a text", None, None)
    made = run(options_for(folder), [strange, without, SAMPLES[2]])
    assert made["failure"][1] == "no picture"
    assert np.isnan(made[METRICS[0]]).tolist() == [False, True, False]
    np.testing.assert_allclose(made[METRICS[0]][2], run(options_for(folder), SAMPLES[2:3])[METRICS[0]][0], rtol=1e-5)


def test_a_folder_without_a_chat_template_is_named(folder, tmp_path):
    for file in folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).symlink_to(file)
    assert "chat_template" not in json.loads((folder / "processor_config.json").read_text())
    with pytest.raises(ConfigError, match="no chat template"):
        mlm_filter.open_scorer(options_for(tmp_path))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        mlm_filter.open_scorer(options_for(folder).model_copy(update={"model": tmp_path / "none"}))


def test_the_start_of_an_answer_is_part_of_the_prompt(folder):
    plain, started = (run(options_for(folder, answer_start=start), SAMPLES[:1]) for start in ("", " "))
    assert plain[METRICS[0]][0] != started[METRICS[0]][0]


def test_tokens_with_digits_are_found_by_their_text():
    class Tokenizer:
        all_special_tokens = ("<7>", "42")

        def get_vocab(self):
            return {
                "Ġ8": 0,
                "▁9": 1,
                "8": 2,
                "100": 3,
                "85.": 4,
                "1000": 5,
                "a1": 6,
                "Ġ": 10,
                "5to9": 11,
                "<7>": 7,
                "42": 8,
                "<0x38>": 9,
            }

    found = read_vocabulary(Tokenizer(), [])
    assert found == Vocabulary({" 8": 0, " 9": 1, "8": 2, "100": 3, "85.": 4, "1000": 5}, frozenset(), found.tokenizer)


def test_pictures_of_fewer_crops_are_filled_with_zeros():
    ids = torch.ones((1, 2), dtype=torch.long)
    sights = [torch.ones(1, crops, 3, 2, 2) for crops in (3, 5)]
    batch = collate([Prompt("", {"input_ids": ids}, {"pixel_values": one}) for one in sights])
    assert batch["pixel_values"].shape == (2, 5, 3, 2, 2)
    assert batch["pixel_values"][0, :3].all()
    assert not batch["pixel_values"][0, 3:].any()

"""Sentence corruptions through text-to-text models of a few thousand parameters, made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from benchmarks.corruptions import MissingTool, Shift, TextTools
from benchmarks.corruptions.sentence_models import PREFIXES, SentenceSimilarity, load_rewriter

CAPTION = "a dog runs over the grass"
WORDS = sorted({*" ".join([CAPTION, *PREFIXES.values()]).replace(":", " :").split(), "cat", "blue", "sleeps"})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """t5/ and bert/ with one vocabulary."""
    folder = tmp_path_factory.mktemp("models")
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    plain = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    plain.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    torch.manual_seed(0)
    t5 = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    bert = BertModel(
        BertConfig(
            vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=64,
        )
    )  # fmt: skip
    for name, model in (("t5", t5), ("bert", bert)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name", PREFIXES)
def test_a_style_is_sampled_by_the_generator_and_leaves_torchs_own_alone(models: Path, name: str) -> None:
    tools = TextTools(rewriters={name: load_rewriter(name, str(models / "t5"))})
    before = torch.get_rng_state()
    first, again, other = (
        Shift.parse(name).text(CAPTION, np.random.default_rng(seed), tools) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again != other
    assert set(first.split()) <= {*WORDS, "<unk>"}


def test_back_translation_chains_two_models_without_chance(models: Path) -> None:
    t5 = models / "t5"
    tools = TextTools(rewriters={"Backtrans": load_rewriter("Backtrans", f"{t5},{t5}")})
    first, other = (Shift.parse("Backtrans").text(CAPTION, np.random.default_rng(s), tools) for s in (0, 1))
    assert first == other


def test_a_text_is_as_similar_to_itself_as_can_be_and_less_to_another(models: Path) -> None:
    similarity = SentenceSimilarity(str(models / "bert"))
    assert similarity(CAPTION, CAPTION) == pytest.approx(1.0)
    assert similarity(CAPTION, "blue cat sleeps") < 0.999


@pytest.mark.parametrize(
    ("corruption", "name", "message"),
    [
        ("Formal", "no/such/folder/here", "cannot load the model 'no/such/folder/here'"),
        ("Formal", "one,two", "Formal takes 1 model, not 'one,two'"),
        ("Backtrans", "one", "Backtrans takes 2 models, not 'one'"),
        ("Formal", "", "Formal takes 1 model"),
        ("OCR", "one", "'OCR' takes no model; Formal, Casual"),
    ],
)
def test_a_wrong_model_says_what_is_wrong(corruption: str, name: str, message: str) -> None:
    with pytest.raises(MissingTool, match=message):
        load_rewriter(corruption, name)


def test_a_sentence_encoder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match="cannot load the model"):
        SentenceSimilarity(str(tmp_path / "none"))

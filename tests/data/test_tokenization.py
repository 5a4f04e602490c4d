"""Texts tokenized word by word have the tokens and the marks of texts tokenized whole."""

import itertools
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)  # fmt: skip

from ift_jax.data import tokenization
from ift_jax.data.tokenization import PARTING, Layout, Tokenization

SPECIALS = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]
ByteLevel, Digits, Split = pre_tokenizers.ByteLevel, pre_tokenizers.Digits, pre_tokenizers.Split
# Words, and what stands between them: merges form within and across all kinds of edges.
ATOMS = [
    *("the", "rating", "Review", "it's", "we'LL", "don't", "naïve", "漢字", "👩‍👩‍👧", "e\u0301"),
    *("½", "٣", "12", "3.5", "(5)", "--", "!?", "a", "n", "<|im", "|>", "<br />", "Å", "\u0301"),
    *(" ", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n "),
    *("\u00a0", "\u3000", "\u0085", "\u200b", "\x1c", *SPECIALS),
]
texts = st.lists(st.sampled_from(ATOMS) | st.text(max_size=3), max_size=30).map("".join)
properties = settings(derandomize=True, deadline=None, database=None, max_examples=150)


def trained(backend: Tokenizer, trainer) -> Tokenizer:
    """The tokenizer with a vocabulary of merges that this repository's own text gives."""
    paragraphs = Path(tokenization.__file__).read_text(encoding="utf-8").split("\n\n")
    edges = ["".join(pair) for pair in itertools.product(ATOMS, repeat=2)]
    backend.train_from_iterator([*paragraphs * 3, *edges * 2], trainer)
    backend.add_special_tokens(SPECIALS)
    return backend


def byte_level(*steps, normalizer=None, trim=False, **options) -> Tokenizer:
    """A byte-level tokenizer, trained without regard to words, so that merges cross their edges."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=ByteLevel.alphabet(), show_progress=False,
        special_tokens=SPECIALS,
    )  # fmt: skip
    backend = trained(backend, trainer)
    last = ByteLevel(**{"add_prefix_space": False, **options})
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    if normalizer:
        backend.normalizer = normalizer
    backend.decoder = decoders.ByteLevel()
    if trim:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return backend


def by(expression: int):
    return Split(Regex(PARTING[expression]), behavior="isolated")


BY_WORDS = {
    "GPT-2": lambda: byte_level(),
    "prefix space": lambda: byte_level(add_prefix_space=True),
    "SmolLM": lambda: byte_level(Digits(individual_digits=True)),
    "runs of digits": lambda: byte_level(Digits(individual_digits=False)),
    "Llama 3": lambda: byte_level(by(1), use_regex=False),
    "Qwen": lambda: byte_level(by(2), use_regex=False, normalizer=normalizers.NFC()),
    "Llama 3, prefix": lambda: byte_level(by(1), use_regex=False, add_prefix_space=True),
}


def layouts_of(text: str, cuts: list[int]) -> list[Layout]:
    """The text closed by a special token, trained from several places to an end of turn."""
    text += "<|im_end|>"
    ends = [i for i in range(len(text) + 1) if text.endswith("<|im_end|>", 0, i)]
    spans = []
    for cut in cuts:
        begin = cut % len(text)
        end = next(end for end in ends if end > begin)
        spans.append((begin, end))
    return [Layout(text, ()), Layout(text, tuple(spans)), Layout(text, ((0, len(text)),))]


@pytest.mark.parametrize("name", BY_WORDS)
def test_tokens_and_marks_by_words_are_those_of_whole_texts(name):
    ours = Tokenization(BY_WORDS[name]())
    assert ours.by_words

    @properties
    @given(texts, st.lists(st.integers(0, 200), max_size=3))
    @example("foo  bar", [3, 4, 5])
    @example("foo \n bar \n\n  5 6", [3, 4, 5])
    @example("foo<s> bar</s>\n baz", [0, 3, 7])
    @example("漢字 é", [1, 2, 3])
    @example("", [0])
    @example("word \n", [6])
    def check(text, cuts):
        layouts = layouts_of(text, cuts)
        for one, whole in zip(ours.encode(layouts), ours.encode_whole(layouts), strict=True):
            assert one.ids.dtype == whole.ids.dtype
            assert one.ids.tolist() == whole.ids.tolist()
            assert one.trained.tolist() == whole.trained.tolist()
            assert one.spans.tolist() == whole.spans.tolist()

    check()


def test_the_real_tokenizer_gives_the_same_by_words(smollm2):
    from ift_jax.data.embedded_reviews import embedded_reviews
    from ift_jax.pretrained import load_chat

    ours = load_chat(smollm2).tokenization
    assert ours.by_words
    layouts = [
        layout
        for number, review in enumerate(embedded_reviews()[:200])
        for layout in layouts_of(review["review_body"], [number, 7 * number])
    ]
    for one, whole in zip(ours.encode(layouts), ours.encode_whole(layouts), strict=True):
        assert one.ids.tolist() == whole.ids.tolist()
        assert one.trained.tolist() == whole.trained.tolist()


def unigram() -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    specials = [*SPECIALS, "<unk>"]
    return trained(
        backend,
        trainers.UnigramTrainer(
            vocab_size=300, show_progress=False, unk_token="<unk>", special_tokens=specials
        ),
    )


def word_piece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = [*SPECIALS, "[UNK]"]
    return trained(
        backend,
        trainers.WordPieceTrainer(vocab_size=300, show_progress=False, special_tokens=specials),
    )


def with_token(text: str, **options) -> Tokenizer:
    backend = byte_level()
    backend.add_tokens([AddedToken(text, **options)])
    return backend


WHOLE = {
    "Unigram with a prepending normalizer": unigram,
    "WordPiece": word_piece,
    "no words": lambda: byte_level(use_regex=False),
    "unknown expression": lambda: byte_level(
        Split(Regex(r"\S+\s"), behavior="isolated"), use_regex=False
    ),
    "expression that removes": lambda: byte_level(
        Split(Regex(PARTING[1]), behavior="removed"), use_regex=False
    ),
    "spaces hidden": lambda: byte_level(ByteLevel(use_regex=False, add_prefix_space=False)),
    "a normalizer that joins": lambda: byte_level(normalizer=normalizers.Strip()),
    "a token that takes the blanks beside it": lambda: with_token("<mask>", lstrip=True),
    "trimmed offsets": lambda: byte_level(trim=True),
    "a token of two words": lambda: with_token("the rating"),
    "a token that is one word only": lambda: with_token("rat", single_word=True),
}


@pytest.mark.parametrize("name", WHOLE)
def test_tokenizers_of_which_nothing_is_known_get_whole_texts(name):
    ours = Tokenization(WHOLE[name]())
    assert not ours.by_words
    layouts = layouts_of("the rating <mask> is  3.5 ", [4])
    for one, whole in zip(ours.encode(layouts), ours.encode_whole(layouts), strict=True):
        assert one.ids.tolist() == whole.ids.tolist()


@pytest.mark.parametrize("token", ["  ", " the", "rating", "<x>"])
def test_added_tokens_within_words_are_found(token):
    for normalized in (False, True):
        ours = Tokenization(with_token(token, normalized=normalized))
        assert ours.by_words
        layouts = layouts_of("the  rating the<x>   rating\n  the", [6])
        for one, whole in zip(ours.encode(layouts), ours.encode_whole(layouts), strict=True):
            assert one.ids.tolist() == whole.ids.tolist()
            assert one.trained.tolist() == whole.trained.tolist()


def test_settings_of_the_tokenizer_that_change_are_minded():
    backend = byte_level()
    ours = Tokenization(backend)
    layouts = layouts_of("one two", [2])
    alone = [one.ids.tolist() for one in ours.encode(layouts)]
    backend.enable_padding(length=30)
    assert [one.ids.tolist() for one in ours.encode(layouts)] == alone
    backend.enable_truncation(2)
    assert [one.ids.tolist() for one in ours.encode_whole(layouts)] == alone
    backend.encode_special_tokens = True
    assert len(ours.encode(layouts)[0].ids) > len("one two")


def test_words_are_kept_up_to_a_limit_and_left_out_of_copies(monkeypatch):
    monkeypatch.setattr(tokenization, "MAX_HELD_CHARACTERS", 100)
    ours = Tokenization(byte_level())
    for number in range(50):
        layouts = [Layout(f"word{number} again {number}<s>", ((0, 3),))]
        [one], [whole] = ours.encode(layouts), ours.encode_whole(layouts)
        assert one.ids.tolist() == whole.ids.tolist()
        assert sum(map(len, ours._ids)) < 100 + 50
    copy = pickle.loads(pickle.dumps(ours))
    assert not copy._ids
    [one] = copy.encode(layouts)
    assert one.ids.tolist() == whole.ids.tolist()
    assert json.loads(copy.backend.to_str()) == json.loads(ours.backend.to_str())

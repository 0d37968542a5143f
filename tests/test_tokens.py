"""Texts to tokens: which ids go into the model, and which of them count, by the bytes that each token stands for."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tiny
from amygdala.errors import UserError
from amygdala.tokens import CHUNK, Encoder, check_last_tokens, pool_weights

SPECIAL_IDS = {0, 1, 2}  # <pad>, <s>, </s> of tiny's tokenizer
TEXTS = [*tiny.sample_texts(6), "Hm, so.", "Two\n\nparagraphs,  with   spaces.", "naïve café 🙂🙃 — 雪が降る"]

CHATML = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
TRIM = "<s>{% for m in messages %}[{{ m['role'] }}]\n\n{{ m['content'] | trim }}</s>{% endfor %}"
WORDS = "<s>{% for m in messages %}{{ '(' + m.role + ') ' }}{{ m.content }}that was all. {% endfor %}"
BARE = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
REWRITES = "<s>{% for m in messages %}{{ m['content'] | replace('warm', 'mild') }}</s>{% endfor %}"
UPPER = "<s>{% for m in messages %}{{ m['content'] | upper }}</s>{% endfor %}"
TWICE = "<s>{% for m in messages %}{{ m['content'] }} {{ m['content'] }}</s>{% endfor %}"
DROPS = "<s>{% for m in messages %}{{ m['role'] }}</s>{% endfor %}"

Chat = tuple[str, str, str]  # before the text, the text, after it


def chatml(role: str, system: str | None, text: str) -> Chat:
    return (f"<s>system\n{system}</s>\n" if system else "") + f"<s>{role}\n", text, "</s>\n"


def trimmed(role: str, system: str | None, text: str) -> Chat:
    return "<s>" + (f"[system]\n\n{system.strip()}</s>" if system else "") + f"[{role}]\n\n", text.strip(), "</s>"


def words(role: str, system: str | None, text: str) -> Chat:
    return "<s>" + (f"(system) {system}that was all. " if system else "") + f"({role}) ", text, "that was all. "


def bare(role: str, system: str | None, text: str) -> Chat:
    return f"{system}</s>" if system else "", text, "</s>"


@functools.cache
def trained(bos: bool) -> Any:
    return tiny.make_tokenizer(bos)


def encoder(
    template: str | None = None, role: str = "user", system: str | None = None, max_tokens: int = 10_000, bos: bool = False
) -> Encoder:
    tokenizer = copy.deepcopy(trained(bos))
    tokenizer.chat_template = template
    return Encoder(tokenizer, max_tokens, {"role": role, "system": system} if template else None)


def expected(tokenizer: Any, chat: Chat, max_tokens: int = 10_000) -> tuple[list[int], list[bool], bool]:
    """ids, content and cut of a chat, by hand: a byte-level token has as many characters as it stands for bytes."""
    ids = tokenizer("".join(chat), add_special_tokens=False)["input_ids"]
    start = len(chat[0].encode())
    end = start + len(chat[1].encode())
    content, at = [], 0
    for position, (number, token) in enumerate(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)):
        inside = start <= at and at + len(token) <= end
        content.append(position > 0 and inside and number not in SPECIAL_IDS)
        at += len(token)
    assert at == len("".join(chat).encode())
    last = max((position for position, flag in enumerate(content) if flag), default=-1)
    kept = [position for position, flag in enumerate(content[:max_tokens]) if flag]
    length = kept[-1] + 1 if kept else 0
    return ids[:length], content[:length], last >= max_tokens


def assert_tokens(encode: Encoder, text: str, chat: Chat) -> None:
    (tokens,) = encode([text])
    ids, content, cut = expected(encode.tokenizer, chat, encode.max_tokens)
    assert (tokens.ids.tolist(), tokens.content.tolist(), tokens.cut) == (ids, content, cut)
    assert (tokens.ids.dtype, tokens.content.dtype, len(tokens)) == (np.int32, np.bool_, len(ids))


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("text", [*TEXTS, "A warm</s> light", "<s>A warm light", " led by a space"])
def test_raw_content_is_all_but_the_first_and_special_tokens(bos: bool, text: str) -> None:
    encode = encoder(bos=bos)
    assert_tokens(encode, text, ("<s>" if bos else "", text, ""))
    (tokens,) = encode([text])
    assert tokens.ids[0] == (1 if bos else encode.tokenizer(text)["input_ids"][0])
    assert not tokens.content[0]
    assert tokens.content[1] == (tokens.ids[1] not in SPECIAL_IDS)


@pytest.mark.parametrize("closing", ["</s>", "<pad>", "</s><pad></s>"])
@pytest.mark.parametrize("bos", [False, True])
def test_trailing_special_tokens_are_not_forwarded(bos: bool, closing: str) -> None:
    encode = encoder(bos=bos)
    with_end, without = encode([TEXTS[0] + closing, TEXTS[0]])
    assert with_end.ids.tolist() == without.ids.tolist() == encode.tokenizer(TEXTS[0])["input_ids"]
    assert with_end.content.tolist() == without.content.tolist()
    assert not with_end.cut


@pytest.mark.parametrize("bos", [False, True])
def test_longer_texts_are_cut_at_the_end_and_marked(bos: bool) -> None:
    full = encoder(bos=bos).tokenizer(TEXTS[0])["input_ids"]
    for limit in (len(full) + 1, len(full), len(full) - 1, 7, 2):
        (tokens,) = encoder(bos=bos, max_tokens=limit)([TEXTS[0]])
        assert tokens.ids.tolist() == full[:limit]
        assert tokens.content.tolist() == [False] + [True] * (min(limit, len(full)) - 1)
        assert tokens.cut is (limit < len(full))
    assert len(encoder(bos=bos, max_tokens=1)([TEXTS[0]])[0]) == 0


def test_special_tokens_beyond_the_limit_are_no_cut() -> None:
    length = len(encoder().tokenizer(TEXTS[0])["input_ids"])
    (tokens,) = encoder(max_tokens=length)([TEXTS[0] + "</s></s>"])
    assert (len(tokens), tokens.cut) == (length, False)


def test_a_cut_within_special_tokens_ends_before_them() -> None:
    length = len(encoder().tokenizer(TEXTS[0])["input_ids"])
    (tokens,) = encoder(max_tokens=length + 1)([TEXTS[0] + "</s></s></s> and more"])
    assert (len(tokens), tokens.cut) == (length, True)
    assert tokens.content[-1]


@pytest.mark.parametrize("text", ["", "a", "<s>", "a</s></s>", "</s><s>"])
def test_texts_without_content_have_no_tokens(text: str) -> None:
    (tokens,) = encoder()([text])
    assert (len(tokens), tokens.ids.size, tokens.content.size) == (0, 0, 0)


class StubTokenizer:
    """Token 7 is one that the template adds but that is not listed as special; 3 is the unknown token, listed as special."""

    all_special_ids: tuple[int, ...] = (0, 1, 2, 3)
    unk_token_id = 3
    is_fast = False
    chat_template = CHATML

    def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
        assert options["return_special_tokens_mask"] and options["add_special_tokens"]
        ids = [[int(token) for token in text.split()] for text in texts]
        return {"input_ids": ids, "special_tokens_mask": [[int(token in (1, 7)) for token in row] for row in ids]}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return f"<{messages[-1]['content']}>"


@pytest.mark.parametrize(
    ("ids", "content"),
    [
        ("1 5 6 7", "-xx"),
        ("5 6 3 2 6", "-xx-x"),
        ("3 3", "-x"),
        ("7 5", "-x"),
        ("1 2 7", ""),
        ("5", ""),
        ("", ""),
    ],
)
def test_which_tokens_are_content(ids: str, content: str) -> None:
    (tokens,) = Encoder(StubTokenizer(), 2048)([ids])
    assert "".join("x" if flag else "-" for flag in tokens.content) == content
    assert tokens.ids.tolist() == [int(token) for token in ids.split()][: len(content)]


ODD_TEXTS = [
    *TEXTS,
    "Be kind.",
    "system",
    "user\n",
    "(user) (user) that was all.  that was all. ",
    "[user]\n\n[user]\n\n",
    "assistant\nuser\nBe kind.",
    "</s>\n",
    "mark</s><s>user\nmark",
    "a </s> token of the chat, <s>within",
    "🙂",
    "e\u0301 \u200d👩‍👩‍👧 \U0001f1e9\U0001f1ea",
    "{{ messages }} {% raw %} \\n",
]
KINDS = {"chatml": (CHATML, chatml), "trim": (TRIM, trimmed), "words": (WORDS, words), "bare": (BARE, bare)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["user", "assistant", "system"])
@pytest.mark.parametrize("system", [None, "", "Be kind.", "  A long prompt, naïve 🙂.\n"])
def test_content_tokens_of_a_chat_are_exactly_those_of_the_text(kind: str, role: str, system: str | None) -> None:
    template, by_hand = KINDS[kind]
    encode = encoder(template, role, system)
    for text in ODD_TEXTS:
        assert_tokens(encode, text, by_hand(role, system, text))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["  led and followed by spaces \n\n", "\nline\n", "\tx y\t", "One space "])
def test_white_space_around_a_text_in_a_chat(kind: str, text: str) -> None:
    template, by_hand = KINDS[kind]
    assert_tokens(encoder(template), text, by_hand("user", None, text))


def test_a_chat_has_no_second_bos() -> None:
    encode = encoder(CHATML, bos=True)
    (tokens,) = encode([TEXTS[0]])
    assert tokens.ids.tolist().count(1) == 1
    assert_tokens(encode, TEXTS[0], chatml("user", None, TEXTS[0]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("system", [None, "Be kind."])
def test_chats_are_cut_to_max_tokens_template_included(kind: str, system: str | None) -> None:
    template, by_hand = KINDS[kind]
    chat = by_hand("user", system, TEXTS[0])
    ids, content, _ = expected(encoder().tokenizer, chat)
    for limit in (len(ids) + 1, len(ids), len(ids) - 1, content.index(True) + 2, content.index(True) + 1):
        encode = encoder(template, system=system, max_tokens=limit)
        assert_tokens(encode, TEXTS[0], chat)
        (tokens,) = encode([TEXTS[0]])
        assert (len(tokens), tokens.cut) == (min(limit, len(ids)), limit < len(ids))
    (tokens,) = encoder(template, system=system, max_tokens=content.index(True))([TEXTS[0]])
    assert (len(tokens), tokens.cut) == (0, True)


def test_a_tokenizer_that_leaves_white_space_out_of_its_offsets() -> None:
    """RoBERTa's way: a token's span begins after its spaces. None but tokens of nothing else may be left out."""
    from tokenizers import processors

    encode = encoder(CHATML)
    plain = encode(TEXTS)
    encode.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    for trimmed, tokens in zip(encode(TEXTS), plain, strict=True):
        assert trimmed.ids.tolist() == tokens.ids.tolist()
        assert not (trimmed.content & ~tokens.content).any()
        assert not encode.tokenizer.decode(tokens.ids[tokens.content & ~trimmed.content]).strip()


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_template_that_takes_no_system_prompt(role: str) -> None:
    assert_tokens(encoder(NO_SYSTEM, role), TEXTS[0], chatml(role, None, TEXTS[0]))
    with pytest.raises(UserError) as caught:
        encoder(NO_SYSTEM, role, "Be kind.")
    assert str(caught.value) == (
        f"template: the model's chat template does not take the role '{role}' with a system prompt: System role not supported"
    )


def test_template_that_does_not_take_the_role() -> None:
    with pytest.raises(UserError, match=r"does not take the role 'system': System role not supported$"):
        encoder(NO_SYSTEM, "system")


@pytest.mark.parametrize("template", [REWRITES, UPPER, TWICE, DROPS])
def test_template_that_changes_the_text(template: str) -> None:
    with pytest.raises(UserError, match=r"template: the model's chat template changes the text 'A warm day'; leave it out"):
        encoder(template)(["A warm day"])


def test_texts_that_a_rewriting_template_leaves_alone() -> None:
    assert_tokens(encoder(REWRITES), "A cold day", ("<s>", "A cold day", "</s>"))


@pytest.mark.parametrize("template", [None, ""])
def test_tokenizer_without_a_chat_template(template: str | None) -> None:
    tokenizer = copy.deepcopy(trained(False))
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"^template: the model's tokenizer has no chat template; set `template: null`"):
        Encoder(tokenizer, 2048, {"role": "user", "system": None})


def test_template_with_a_tokenizer_that_knows_no_offsets() -> None:
    with pytest.raises(UserError, match=r"^template: needs a tokenizer that tells where its tokens lie"):
        Encoder(StubTokenizer(), 2048, {"role": "user", "system": None})


def random_contents() -> list[list[bool]]:
    draw = np.random.default_rng(0)
    made = [(draw.random(draw.integers(1, 30)) > draw.random()).tolist() for _ in range(60)]
    return [[], [True], [False], [False, False], [True] * 9, *made]


@pytest.mark.parametrize("pooling", ["mean", "last", *(f"from_token:{first}" for first in (1, 2, 3, 7, 50))])
def test_pool_weights(pooling: str) -> None:
    for flags in random_contents():
        positions = [position for position, flag in enumerate(flags) if flag]
        if pooling == "last":
            positions = positions[-1:]
        elif pooling != "mean":
            positions = positions[int(pooling.split(":")[1]) - 1 :]
        weights = pool_weights(np.array(flags, bool), pooling)
        assert (weights.dtype, weights.shape) == (np.float32, (len(flags),))
        assert weights.tolist() == [np.float32(1 / len(positions)) if p in positions else 0 for p in range(len(flags))]
        assert weights.sum() == (pytest.approx(1, abs=1e-6) if positions else 0)


@pytest.mark.parametrize("pooling", ["median", "from_tokens:3", "", "Mean"])
def test_unknown_pooling(pooling: str) -> None:
    with pytest.raises(ValueError, match=f"unknown pooling '{pooling}'"):
        pool_weights(np.ones(3, bool), pooling)


SAME = [f"Text number {number}, and the end." for number in range(2 * CHUNK + 3)]


@pytest.mark.parametrize("count", [2, CHUNK, CHUNK + 1, len(SAME)])
@pytest.mark.parametrize("template", [None, CHATML])
def test_texts_that_all_end_in_the_same_token_are_refused(count: int, template: str | None) -> None:
    with pytest.raises(UserError, match=r"^pooling: last: all texts end in the same token '\.'.* Choose pooling: mean"):
        check_last_tokens(encoder(template), SAME[:count])


@pytest.mark.parametrize("where", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, len(SAME) - 1])
def test_one_text_that_ends_otherwise_is_enough(where: int) -> None:
    check_last_tokens(encoder(), [*SAME[:where], "Text of another end!", *SAME[where + 1 :]])


def test_texts_that_end_alike_chunk_by_chunk_are_no_ground_to_refuse() -> None:
    check_last_tokens(encoder(), [*SAME[:CHUNK], *(text.replace(".", "!") for text in SAME[:CHUNK])])


@pytest.mark.parametrize("texts", [[], ["One text alone."], ["One text alone.", "a", "</s>"]])
def test_a_single_text_is_no_ground_to_refuse(texts: list[str]) -> None:
    check_last_tokens(encoder(), texts)


def test_no_more_texts_are_looked_at_than_needed() -> None:
    def endless() -> Iterator[str]:
        yield from ("One end.", "Another end!")
        yield from itertools.repeat("More.", CHUNK - 2)
        raise AssertionError("read on")

    check_last_tokens(encoder(), endless())

"""Rows of a capture with a chat template, and of hybrid models, against the whole model run on one sequence at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from amygdala.errors import UserError
from amygdala.keys import text_digest
from amygdala.segments import HEADS, RESIDUAL
from architectures import make_causal
from captures import SPECIAL_IDS, Run, Slow, Watch, assert_near, assert_rows, some

CHATML = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
TRIM = "<s>{% for m in messages %}[{{ m['role'] }}]\n\n{{ m['content'] | trim }}</s>{% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}" + CHATML


def chatml(role: str, system: str | None, text: str) -> tuple[str, str, str]:
    return (f"<s>system\n{system}</s>\n" if system else "") + f"<s>{role}\n", text, "</s>\n"


def trimmed(role: str, system: str | None, text: str) -> tuple[str, str, str]:
    return "<s>" + (f"[system]\n\n{system.strip()}</s>" if system else "") + f"[{role}]\n\n", text.strip(), "</s>"


def with_template(model: Path, folder: Path, template: str) -> Path:
    """A copy of a model folder whose tokenizer has a chat template."""
    shutil.copytree(model, folder)
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def content_of(tokenizer: Any, ids: list[int], start: int, end: int) -> list[int]:
    """Positions of the tokens within bytes `start` to `end`: a byte-level token has a character for each of its bytes."""
    found, at = [], 0
    for position, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        if start <= at and at + len(token) <= end and ids[position] not in SPECIAL_IDS:
            found.append(position)
        at += len(token)
    return found


ODD = ["naïve café 🙂 — and so on", "user\nuser\nassistant", "a </s> token within", "  Spaces at both ends. \n"]
CHAT_TEXTS = {**some(0, 3, 7, 12), **{text_digest(text): text for text in ODD}}


@pytest.mark.parametrize(("template", "by_hand"), [(CHATML, chatml), (TRIM, trimmed)])
@pytest.mark.parametrize(("role", "system"), [("user", None), ("assistant", "Be kind, naïve 🙂."), ("system", None)])
def test_rows_with_a_template(
    tmp_path: Path, tiny_model: Path, template: str, by_hand: Callable[..., tuple[str, str, str]], role: str, system: str | None
) -> None:
    """The whole chat is run, what closes it included; the row is of the content tokens' states."""
    run = Run(tmp_path, with_template(tiny_model, tmp_path / "model", template))
    poolings = ("mean", "last", "from_token:4")
    run(CHAT_TEXTS, poolings=poolings, template={"role": role, "system": system})
    slow = Slow(run.settings["source"])
    for digest, text in CHAT_TEXTS.items():
        chat = by_hand(role, system, text)
        ids = slow.tokenizer("".join(chat), add_special_tokens=False)["input_ids"]
        start = len(chat[0].encode())
        content = content_of(slow.tokenizer, ids, start, start + len(chat[1].encode()))
        assert len(content) > 4 and content[-1] < len(ids) - 1
        for layer in (1, 2):
            states = slow.states(ids, layer)
            for pooling, kept in zip(poolings, (content, content[-1:], content[3:]), strict=True):
                reader = run.reader(pooling=pooling)
                assert reader.pooled(digest) == len(kept)
                for kind in (RESIDUAL, HEADS):
                    assert_near(reader.rows(layer, kind, [digest])[0], states[kind][kept].mean(axis=0))


def test_texts_cut_within_a_chat(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, with_template(tiny_model, tmp_path / "model", CHATML))
    watch = Watch(monkeypatch)
    texts = some(slice(0, 6))
    stats = run(texts, layers=[1], template={"role": "user", "system": "Be kind."}, max_tokens=30)
    slow = Slow(run.settings["source"])
    expected = []
    for digest, text in texts.items():
        chat = chatml("user", "Be kind.", text)
        ids = slow.tokenizer("".join(chat), add_special_tokens=False)["input_ids"]
        start = len(chat[0].encode())
        content = [p for p in content_of(slow.tokenizer, ids, start, start + len(text.encode())) if p < 30]
        expected.append(tuple(ids[:30]))
        assert_near(run.reader().rows(1, RESIDUAL, [digest])[0], slow.states(ids, 1)[RESIDUAL][content].mean(axis=0))
    assert sorted(watch.forwarded) == sorted(expected)
    assert (stats["cut_texts"], stats["tokens"]) == (6, 180)


def test_the_closing_token_of_a_template_does_not_pass_for_the_last(tmp_path: Path, tiny_model: Path) -> None:
    """Chats that end alike hold texts that do not, which is no ground to refuse `last`; texts that end alike are."""
    run = Run(tmp_path, with_template(tiny_model, tmp_path / "model", CHATML))
    chat = {"role": "user", "system": None}
    same = {text_digest(text): text for text in ("One.", "Another.")}
    with pytest.raises(UserError, match=r"all texts end in the same token '\.'"):
        run(same, poolings=["last"], template=chat)
    other = {text_digest(text): text for text in ("One.", "Another!")}
    assert run(other, poolings=["last"], template=chat)["forwarded_texts"] == 2


@pytest.mark.parametrize(
    ("template", "system", "words"),
    [
        (None, None, "has no chat template; set `template: null`"),
        (NO_SYSTEM, "Be kind.", "does not take the role 'user' with a system prompt: no system prompts"),
        ("<s>{{ messages[0]['content'] | upper }}</s>", None, "changes the text"),
    ],
)
def test_templates_that_will_not_do(
    tmp_path: Path, tiny_model: Path, template: str | None, system: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, with_template(tiny_model, tmp_path / "model", template) if template else tiny_model)
    watch = Watch(monkeypatch)
    with pytest.raises(UserError, match=f"^template: the model's .*{words}"):
        run(some(0, 1), template={"role": "user", "system": system})
    assert watch.forwarded == [] and not run.segments(1)


# hybrid models

HYBRID = {"qwen3_next": ([3], 16), "jamba": ([1, 3], 12)}  # layers with attention, and the width of a head


@pytest.mark.parametrize("kind", HYBRID)
def test_hybrid_models_have_heads_only_where_attention_is(tmp_path: Path, kind: str) -> None:
    attention, head_dim = HYBRID[kind]
    make_causal(kind, tmp_path / "model")
    tiny.make_tokenizer().save_pretrained(tmp_path / "model")
    run = Run(tmp_path, tmp_path / "model")
    texts = some(slice(0, 5))
    run(texts, layers=range(4))
    reader = run.reader()
    for layer in range(4):
        said = [line for line in run.lines if line.startswith(f"layer {layer} has no heads: ")]
        if layer in attention:
            assert reader.layout(layer) == {"n_heads": 4, "head_dim": head_dim} and not said
        else:
            assert set(reader.layout(layer)) == {"reason"}
            assert said == [f"layer {layer} has no heads: {reader.layout(layer)['reason']}"]
    assert_rows(run, texts, range(4))

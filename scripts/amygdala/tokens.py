"""Texts to tokens: which ids go into the model, and which of them count as content."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amygdala.errors import UserError, shown

FROM_TOKEN = "from_token:"
CHUNK = 256
# Templates that write the date get this one: rows must not depend on the day of the capture.
DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


@dataclass(frozen=True)
class Tokens:
    """A tokenized text: ids int32 [T], content bool [T] (which tokens count), whether it was cut to `max_tokens`.

    The last token is the last content token: what follows it (a template's end, a closing special token) cannot reach
    an earlier position of a causal model, and is not forwarded.
    """

    ids: np.ndarray
    content: np.ndarray
    cut: bool

    def __len__(self) -> int:
        return len(self.ids)


def first_token(pooling: str) -> int | None:
    """N of `from_token:N`, None for other poolings."""
    return int(pooling.removeprefix(FROM_TOKEN)) if pooling.startswith(FROM_TOKEN) else None


def pool_weights(content: np.ndarray, pooling: str) -> np.ndarray:
    """bool [tokens] of content tokens to float32 weights [tokens] that sum to 1, or are all 0 where no token is pooled.

    `mean`: all content tokens alike; `last`: the last one; `from_token:N`: from the Nth content token on (1-based) alike.
    """
    positions = np.flatnonzero(content)
    if pooling == "last":
        positions = positions[-1:]
    elif (first := first_token(pooling)) is not None:
        positions = positions[first - 1 :]
    elif pooling != "mean":
        raise ValueError(f"unknown pooling {pooling!r}")
    weights = np.zeros(len(content), np.float32)
    if len(positions):
        weights[positions] = np.float32(1) / np.float32(len(positions))
    return weights


def rendering(tokenizer: Any, template: Mapping[str, Any]) -> Callable[[str], tuple[str, int, int]]:
    """A function from a text to (the chat with it, where the text begins in it, where it ends), by the tokenizer's chat
    template.

    template: {"role": user, assistant or system, "system": text or None}. UserError where the model has no such template, or
    where the template changes a text by more than white space around it.
    """

    def render(text: str) -> str:
        system = [{"role": "system", "content": template["system"]}] if template.get("system") else []
        messages = [*system, {"role": template["role"], "content": text}]
        try:
            return tokenizer.apply_chat_template(messages, chat_template=timeless, tokenize=False, add_generation_prompt=False)
        except Exception as error:  # jinja2 raises what templates raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"template: the model's chat template does not take the role {shown(template['role'])}"
                f"{' with a system prompt' if system else ''}: {reason}"
            ) from None

    if not getattr(tokenizer, "chat_template", None):
        raise UserError("template: the model's tokenizer has no chat template; set `template: null` for raw text")
    timeless = DATE + tokenizer.get_chat_template()
    mark = f"mark{secrets.token_hex(8)}"
    before, _, after = render(mark).partition(mark)

    def place(text: str) -> tuple[str, int, int]:
        chat = render(text)
        start, end = len(before), len(chat) - len(after)
        if not (chat.startswith(before) and chat.endswith(after) and chat[start:end].strip() == text.strip()):
            raise UserError(
                f"template: the model's chat template changes the text {shown(text)}; leave it out, or set template: null"
            )
        return chat, start, end

    return place


class Encoder:
    """Texts to Tokens with a model's tokenizer, as raw text or within its chat template.

    Raw: the tokenizer's own special tokens are added; content is all but the sequence's first token, whose activation is an
    outlier in most decoders (Xiao et al., 2309.17453), and the special ones. Template: content is what lies wholly inside the
    text, these left out alike. Longer texts are cut at the end to `max_tokens`.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, template: Mapping[str, Any] | None = None) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        others = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
        unknown = {tokenizer.unk_token_id} - others  # GPT-2's is its end token too
        self.special = np.array(sorted(set(tokenizer.all_special_ids) - unknown), dtype=np.int32)
        if template is not None and not tokenizer.is_fast:
            raise UserError("template: needs a tokenizer that tells where its tokens lie (a fast one); set `template: null`")
        self.place = None if template is None else rendering(tokenizer, template)

    def __call__(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of each text; one without content tokens has none at all (ids [0])."""
        return self._chats(texts) if self.place else self._raw(texts)

    def _raw(self, texts: Sequence[str]) -> list[Tokens]:
        encoded = self.tokenizer(list(texts), add_special_tokens=True, return_special_tokens_mask=True, verbose=False)
        result = []
        for ids, mask in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
            # slow tokenizers may tell of fewer tokens than they give; then the special ids alone say which count
            content = ~np.array(mask, dtype=bool) if len(mask) == len(ids) else np.ones(len(ids), dtype=bool)
            content[:1] = False
            result.append(self._tokens(np.array(ids, dtype=np.int32), content))
        return result

    def _chats(self, texts: Sequence[str]) -> list[Tokens]:
        assert self.place is not None
        placed = [self.place(text) for text in texts]
        encoded = self.tokenizer(
            [chat for chat, _, _ in placed], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        result = []
        for ids, offsets, (_, start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], placed, strict=True):
            spans = np.array(offsets, dtype=np.int64).reshape(-1, 2)
            content = (spans[:, 0] >= start) & (spans[:, 1] <= end) & (spans[:, 0] < spans[:, 1])
            content[:1] = False
            result.append(self._tokens(np.array(ids, dtype=np.int32), content))
        return result

    def _tokens(self, ids: np.ndarray, content: np.ndarray) -> Tokens:
        content = content & ~np.isin(ids, self.special)
        found = np.flatnonzero(content)
        cut = bool(len(found)) and int(found[-1]) >= self.max_tokens
        length = min(int(found[-1]) + 1, self.max_tokens) if len(found) else 0
        content = content[:length]
        if cut:  # a cut may end within special tokens of the text
            kept = np.flatnonzero(content)
            length = int(kept[-1]) + 1 if len(kept) else 0
        return Tokens(ids[:length], content[:length], cut)


def check_last_tokens(encoder: Encoder, texts: Iterable[str]) -> None:
    """UserError where the last content token of all texts (two at least) is the same: `last` rows would hold the token.

    A chat template's closing token does that to every text. It is looked at in chunks, until two texts differ.
    """
    seen: set[int] = set()
    count = 0
    rest = iter(texts)
    while chunk := list(itertools.islice(rest, CHUNK)):
        ends = [int(tokens.ids[-1]) for tokens in encoder(chunk) if len(tokens)]
        seen.update(ends)
        count += len(ends)
        if len(seen) > 1:
            return
    if count > 1:
        token = encoder.tokenizer.decode([seen.pop()])
        raise UserError(
            f"pooling: last: all texts end in the same token {shown(token)}. Their rows would hold that token more "
            "than the texts, and every vector would be noise. Choose pooling: mean or from_token, or texts that end differently"
        )

"""Models, tokenizers and stores that would give wrong rows, or lose sound ones, without a word."""

from __future__ import annotations

import datetime
import errno
import json
import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
from amygdala import loading, segments
from amygdala.architecture import Decoder, check_causal, find_projections, states_of
from amygdala.batching import Batch, Budget, Texts, batches
from amygdala.errors import UserError
from amygdala.keys import text_digest
from amygdala.residual import Capture, pool
from amygdala.segments import HEADS, RESIDUAL, Reader, held_rows, layer_folder, write_index, write_segment
from amygdala.tokens import Encoder, Tokens
from captures import TEXTS, Run, some
from segmented import digest_of, index_over, rows_of, values_of

CPU = torch.device("cpu")
LAYOUT = {"n_heads": 2, "head_dim": 2}


def with_weights(source: Path, target: Path, **more: torch.Tensor) -> str:
    shutil.copytree(source, target)
    weights = {**load_file(target / "model.safetensors"), **more}
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return str(target)


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("model.layers.0.self_attn.q_proj.weight_scale", True),
        ("model.layers.1.self_attn.q_norm.weight", True),
        ("model.layers.1.mlp.up_proj.lora_A.weight", True),
        ("model.layers.3.self_attn.q_proj.weight_scale", False),  # a block that is not loaded
        ("model.layers.0.self_attn.rotary_emb.inv_freq", False),  # buffers of old checkpoints
        ("model.layers.0.attention.masked_bias", False),
        ("mtp.layers.0.self_attn.q_proj.weight", False),
        ("lm_head.bias", False),
    ],
)
def test_weights_that_the_blocks_do_not_know(tmp_path: Path, tiny_model: Path, name: str, refused: bool) -> None:
    folder = with_weights(tiny_model, tmp_path / "model", **{name: torch.ones(4)})
    if refused:
        with pytest.raises(UserError, match=f"1 weights that LlamaModel does not know, '{name}' first"):
            loading.load_decoder(folder, None, 2, "fp32", CPU)
    else:
        loading.load_decoder(folder, None, 2, "fp32", CPU)


class Bidirectional(nn.Module):
    """Each state is its token's embedding and a share of the mean of all; the first token's is a thousand times as long."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(50, 8)
        self.layers = nn.ModuleList([nn.Identity()])
        self.causal = causal

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        states = self.embeddings(input_ids)
        if not self.causal:
            states = states + 0.3 * states.mean(dim=1, keepdim=True)
        states = torch.cat([1000 * states[:, :1], states[:, 1:]], dim=1)
        return self.layers[0](states.to(torch.bfloat16))


@pytest.mark.parametrize("causal", [True, False])
def test_a_long_first_token_hides_no_encoder(causal: bool) -> None:
    torch.manual_seed(0)
    module = Bidirectional(causal)
    with torch.inference_mode():
        if causal:
            check_causal(Decoder(module, module.layers))
        else:
            with pytest.raises(UserError, match="is no decoder"):
                check_causal(Decoder(module, module.layers))


def test_memory_that_runs_out_while_heads_are_looked_for_is_no_answer(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = loading.load_decoder(str(tiny_model), None, 2, "fp32", CPU)
    attention = decoder.layers[0].self_attn

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attention, "forward", full)
    with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError):
        find_projections(decoder, decoder.module.config)


def test_a_block_may_give_a_list() -> None:
    states = torch.ones(1, 2, 3)
    assert states_of([states, None]) is states and states_of((states,)) is states and states_of(states) is states


def test_fp16_overflow_where_nothing_is_pooled() -> None:
    states = torch.tensor([[[float("inf")], [1.0], [3.0], [float("nan")]]], dtype=torch.float16)
    weights = torch.tensor([[[0, 0.5, 0.5, 0], [0, 0, 1, 0]]])
    assert pool(states, weights).tolist() == [[[2.0], [3.0]]]
    assert not torch.isfinite(pool(states, torch.tensor([[[0.5, 0.5, 0, 0]]]))).all()


def test_tokens_beyond_the_embeddings_are_named(tiny_model: Path) -> None:
    with Capture(str(tiny_model), None, [1], "fp32", ["mean"], CPU) as capture:
        ids = np.array([[1, 500]])
        batch = Batch(
            np.zeros(1, np.int64), ids, np.full((1, 1, 2), 0.5, np.float32), np.array([2], np.int32), np.zeros(1, bool)
        )
        with pytest.raises(UserError, match="gives token 500, the embeddings have 500"):
            capture(batch)


# Tokenizers and templates


def edited(source: Path, target: Path, file: str, change: Any) -> str:
    shutil.copytree(source, target)
    given = json.loads((target / file).read_text())
    change(given)
    (target / file).write_text(json.dumps(given))
    return str(target)


def test_a_tokenizer_without_its_vocabulary(tmp_path: Path, tiny_model: Path) -> None:
    folder = edited(
        tiny_model, tmp_path / "model", "tokenizer_config.json", lambda c: c.update(tokenizer_class="GPT2Tokenizer")
    )
    Path(folder, "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no usable tokenizer"):
        loading.load_tokenizer(folder, None)


def test_a_tokenizer_of_a_newer_library(tmp_path: Path, tiny_model: Path) -> None:
    folder = edited(tiny_model, tmp_path / "model", "tokenizer.json", lambda t: t["model"].update(type="Unheard"))
    with pytest.raises(UserError, match="no usable tokenizer"):
        loading.load_tokenizer(folder, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_attention_heads", value) for value in (None, "four", 0)),
        ("vocab_size", -5),  # which is found when the model is laid out
    ],
)
def test_a_configuration_of_wrong_values(tmp_path: Path, tiny_model: Path, name: str, value: Any) -> None:
    folder = edited(tiny_model, tmp_path / "model", "config.json", lambda c: c.update({name: value}))
    with pytest.raises(UserError, match="cannot be loaded"):
        loading.load_decoder(folder, None, 2, "fp32", CPU)


def test_code_in_a_model_folder_is_not_run(tmp_path: Path, tiny_model: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config.update(model_type="unheard", auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model"})

    folder = edited(tiny_model, tmp_path / "model", "config.json", change)
    Path(folder, "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="cannot be loaded"):
        loading.load_decoder(folder, None, 2, "fp32", CPU)
    with pytest.raises(UserError, match="cannot be loaded"):
        loading.read_config(folder, None)
    assert not (tmp_path / "ran").exists()


def test_a_template_that_writes_the_date_writes_the_same_one_each_day() -> None:
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = "Today is {{ strftime_now('%d %b %Y') }}. {% for m in messages %}{{ m.content }}{% endfor %}!"
    encode = Encoder(tokenizer, 2048, {"role": "user", "system": None})
    (tokens,) = encode(["A text."])
    assert tokenizer.decode(tokens.ids) == "Today is 26 Jul 2024. A text."
    assert f"{datetime.date.today():%Y}" not in tokenizer.decode(tokens.ids)


class Slow:
    """A tokenizer whose mask tells of fewer tokens than it gives; its unknown token is its end token too."""

    all_special_ids = (0, 9)
    unk_token_id = eos_token_id = 9
    is_fast = False

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
        return {"input_ids": [[0, 5, 6, 9] for _ in texts], "special_tokens_mask": [[0, 0] for _ in texts]}


def test_a_mask_that_is_too_short_and_an_unknown_token_that_ends_texts() -> None:
    (tokens,) = Encoder(Slow(), 100)(["a text"])
    assert tokens.ids.tolist() == [0, 5, 6] and tokens.content.tolist() == [False, True, True]


# Batches


def made_of(lengths: list[int], budget: Budget) -> list[list[int]]:
    texts = Texts((text_digest(f"{n} {length}"), "x" * length) for n, length in enumerate(lengths))

    def encode(read: Any) -> list[Tokens]:
        return [Tokens(np.ones(len(text), np.int32), np.ones(len(text), bool), False) for text in read]

    return [batch.tokens.tolist() for batch in batches(texts, np.arange(len(texts)), encode, ["mean"], budget)]


def test_no_batch_lies_on_both_sides_of_a_longrope_border() -> None:
    lengths = [70, 66, 65, 64, 60, 10]
    assert made_of(lengths, Budget(10_000)) == [lengths]
    assert made_of(lengths, Budget(10_000, border=64)) == [[70, 66, 65], [64, 60, 10]]
    assert made_of([64, 60], Budget(10_000, border=64)) == [[64, 60]]


def test_where_the_border_of_a_model_is(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import Phi3Config

    assert loading.rope_border(loading.read_config(str(tiny_model), None)) is None
    factors = [1.0] * 8
    rope = {"type": "longrope", "short_factor": factors, "long_factor": [4.0] * 8}
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = Phi3Config(**shape, original_max_position_embeddings=64, max_position_embeddings=256, rope_scaling=rope)
    config.save_pretrained(tmp_path)
    assert loading.rope_border(loading.read_config(str(tmp_path), None)) == 64
    inside = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    for where in ("rope_parameters", "rope_scaling"):
        assert loading.rope_border(SimpleNamespace(**{where: inside})) == 64
    beside = {"original_max_position_embeddings": 64, "rope_parameters": {"rope_type": "longrope"}}
    assert loading.rope_border(SimpleNamespace(**beside)) == 64
    assert loading.rope_border(SimpleNamespace(rope_parameters={**inside, "rope_type": "yarn"})) is None


def test_windows_hold_so_many_characters_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    from amygdala import batching

    monkeypatch.setattr(batching, "WINDOW_CHARS", 100)
    seen: list[int] = []
    texts = Texts((text_digest(str(n)), "x" * length) for n, length in enumerate([150, 60, 40, 30, 20, 10]))

    def encode(read: Any) -> list[Tokens]:
        seen.append(sum(map(len, read)))
        return [Tokens(np.ones(len(text), np.int32), np.ones(len(text), bool), False) for text in read]

    made = list(batches(texts, np.arange(6), encode, ["mean"], Budget(10_000)))
    assert seen == [150, 100, 60]
    assert sorted(position for batch in made for position in batch.positions.tolist()) == list(range(6))


def test_a_full_temporary_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(UserError, match=r"temporary folder .*No space left.*TMPDIR"):
        Texts([(text_digest("a"), "a")])


# The store


def test_more_segments_than_files_may_be_open(tmp_path: Path) -> None:
    """Each of 2 layers in 80 segments, 60 files at a time: the rows come, and no segment is set aside."""
    count = 80
    for number in range(count):
        for layer in (1, 2):
            write_segment(tmp_path, layer, rows_of([number], layer), LAYOUT)
    index = index_over(tmp_path, "index", range(count), (1, 2))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 60, before[1]))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(segments, "MOST_MAPPED", 20)
            reader = Reader([index])
            for layer in (1, 2):
                for kind in (RESIDUAL, HEADS):
                    got = reader.rows(layer, kind, [digest_of(number) for number in range(count)])
                    assert got.shape[0] == count
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not list(tmp_path.rglob("*.damaged")) and index.exists()
    width = got.shape[1]
    assert width and values_of(3, 2, width).shape == (width,)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE])
def test_what_cannot_be_read_for_now_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = write_segment(tmp_path, 1, rows_of([0, 1], 1), LAYOUT)
    index = index_over(tmp_path, "index", [0, 1], [1])

    def failing(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", failing)
        with pytest.raises(UserError, match=r"cannot read .*left as it is"):
            held_rows(tmp_path, 1)
        with pytest.raises(UserError, match="cannot read"):
            Reader([index])
    assert path.exists() and index.exists() and len(held_rows(tmp_path, 1).digests) == 2


def test_segments_that_disagree_on_the_heads_are_named(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, rows_of([0], 1), LAYOUT)
    write_segment(tmp_path, 1, rows_of([1], 1, heads=False), {"reason": "its attention could not be watched"})
    held = held_rows(tmp_path, 1)
    with pytest.raises(UserError, match=r"disagree on the layer's heads"):
        write_index(tmp_path / "index" / "x", held.digests, {1: held}, {})
    assert len(list(layer_folder(tmp_path, 1).iterdir())) == 2


def test_heads_of_a_layer_without_any_leave_its_segment_alone(tmp_path: Path) -> None:
    path = write_segment(tmp_path, 1, rows_of([0], 1, heads=False), {"reason": "no attention (Mixer)"})
    reader = Reader([index_over(tmp_path, "index", [0], [1])])
    with pytest.raises(ValueError, match=r"layer 1 has no heads: no attention \(Mixer\)"):
        reader.rows(1, HEADS, [digest_of(0)])
    assert path.exists()


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_device_map_wants_gpus(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UserError, match=f"device_map: auto spreads a model over GPUs; with device: {device}"):
        Run(tmp_path, tiny_model)(some(0), device=device, device_map="auto")
    assert TEXTS


def test_shards_take_turns_on_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [loading.pick_device("auto", shard).index for shard in range(4)] == [0, 1, 0, 1]

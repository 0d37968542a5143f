"""Heads ablated in forward passes, against models whose weights lack them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from amygdala.ablating import ablated, forward_rows
from amygdala.architecture import NoHeads, Projection
from amygdala.batching import Budget, pad
from amygdala.errors import UserError
from amygdala.residual import Capture
from amygdala.tokens import Tokens

ALL = (0, 1, 2, 3)
POOLINGS = ("mean", "last")
KINDS = ["llama", "gpt2", "qwen3"]
HEADS = {0: [2], 1: [0, 3], 2: [1]}


def texts() -> list[Tokens]:
    random = np.random.default_rng(3)
    made = []
    for length in (9, 14, 5, 14):
        content = np.ones(length, bool)
        content[0] = False
        made.append(Tokens(random.integers(3, 500, length, dtype=np.int32), content, False))
    return made


@pytest.fixture(scope="module", params=KINDS)
def capture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Capture]:
    folder = tiny.make_model(tmp_path_factory.mktemp("models") / request.param, request.param)
    with Capture(str(folder), None, ALL, "fp32", POOLINGS, torch.device("cpu")) as made:
        yield made


def rows_of(capture: Capture) -> dict[tuple[str, int], np.ndarray]:
    captured = capture(pad(range(4), texts(), POOLINGS))
    return {pair: values.numpy() for pair, values in captured.residual.items()}


def projection_of(capture: Capture, layer: int) -> Projection:
    found = capture.projections[layer]
    assert isinstance(found, Projection)
    return found


def parts(capture: Capture, layer: int, head: int) -> torch.Tensor:
    """W_O,h [hidden, head_dim], a view of the model's own weight."""
    block: Any = capture.decoder.layers[layer]
    width = projection_of(capture, layer).head_dim
    of_head = slice(head * width, (head + 1) * width)
    if hasattr(block, "attn"):  # GPT-2: [inputs, outputs]
        return block.attn.c_proj.weight.data.T[:, of_head]
    return block.self_attn.o_proj.weight.data[:, of_head]


def assert_near(found: dict[tuple[str, int], np.ndarray], expected: dict[tuple[str, int], np.ndarray]) -> None:
    assert set(found) == set(expected)
    for pair, values in found.items():
        assert np.linalg.norm(values - expected[pair]) < 1e-5 * np.linalg.norm(expected[pair])


def test_heads_are_laid_out_as_the_test_believes(capture: Capture) -> None:
    head_dim = 12 if hasattr(capture.decoder.layers[0], "attn") else 16
    for layer in ALL:
        assert (projection_of(capture, layer).n_heads, projection_of(capture, layer).head_dim) == (4, head_dim)


def test_zero_equals_a_model_whose_weights_lack_the_heads(capture: Capture) -> None:
    intact = rows_of(capture)
    with ablated(capture.projections, HEADS):
        found = rows_of(capture)
    kept = {(layer, head): parts(capture, layer, head).clone() for layer, heads in HEADS.items() for head in heads}
    try:
        for layer, head in kept:
            parts(capture, layer, head).zero_()
        expected = rows_of(capture)
    finally:
        for (layer, head), weight in kept.items():
            parts(capture, layer, head).copy_(weight)
    assert_near(found, expected)
    assert_near(rows_of(capture), intact)
    for pair, values in found.items():
        assert np.linalg.norm(values - intact[pair]) > 1e-2 * np.linalg.norm(values)


def test_mean_equals_zero_and_what_the_means_write(capture: Capture) -> None:
    random = np.random.default_rng(4)
    shapes = {layer: (projection_of(capture, layer).n_heads, projection_of(capture, layer).head_dim) for layer in HEADS}
    fill = {layer: random.standard_normal(shape) for layer, shape in shapes.items()}
    with ablated(capture.projections, HEADS, fill):
        found = rows_of(capture)
    kept = {(layer, head): parts(capture, layer, head).clone() for layer, heads in HEADS.items() for head in heads}
    hooks = []
    try:
        for layer, heads in HEADS.items():
            written = sum(kept[layer, head] @ torch.from_numpy(fill[layer][head]).float() for head in heads)
            for head in heads:
                parts(capture, layer, head).zero_()
            block: Any = capture.decoder.layers[layer]
            module = block.attn.c_proj if hasattr(block, "attn") else block.self_attn.o_proj
            hooks.append(module.register_forward_hook(lambda module, inputs, output, written=written: output + written))
        expected = rows_of(capture)
    finally:
        for hook in hooks:
            hook.remove()
        for (layer, head), weight in kept.items():
            parts(capture, layer, head).copy_(weight)
    assert_near(found, expected)


def test_every_token_of_an_ablated_head_is_replaced_and_no_other_head(capture: Capture) -> None:
    seen: list[torch.Tensor] = []
    width = projection_of(capture, 1).head_dim
    fill = {1: np.arange(4 * width).reshape(4, width) + 100.0}
    with ablated(capture.projections, {1: [2, 0]}, fill):
        hook = projection_of(capture, 1).module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
        rows_of(capture)
        hook.remove()
    hook = projection_of(capture, 1).module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    rows_of(capture)
    hook.remove()
    assert seen[0].shape == seen[1].shape == (4, 14, 4 * width)
    for batch in range(4):
        for token in range(14):
            for head in range(4):
                of_head = slice(head * width, (head + 1) * width)
                right = torch.from_numpy(fill[1][head]).float() if head in (0, 2) else seen[1][batch, token, of_head]
                assert torch.equal(seen[0][batch, token, of_head], right)


def test_what_attention_returned_is_left_as_it_was(capture: Capture) -> None:
    """A model may use it elsewhere; the capture's own head rows are of the intact values too."""
    seen: list[torch.Tensor] = []
    hook = projection_of(capture, 0).module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with ablated(capture.projections, {0: [1]}):
        rows_of(capture)
    rows_of(capture)
    hook.remove()
    assert torch.equal(seen[0], seen[1])


def test_nothing_ablated_is_intact(capture: Capture) -> None:
    intact = rows_of(capture)
    heads: Mapping[int, list[int]]
    for heads in ({}, {1: []}):
        with ablated(capture.projections, heads):
            found = rows_of(capture)
        assert all(np.array_equal(values, intact[pair]) for pair, values in found.items())


def hooks_of(capture: Capture) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in capture.decoder.module.modules())


def test_hooks_are_gone_whatever_happens(capture: Capture) -> None:
    before, intact = hooks_of(capture), rows_of(capture)
    with ablated(capture.projections, HEADS):
        assert hooks_of(capture) == before + 3
    assert hooks_of(capture) == before
    with pytest.raises(KeyboardInterrupt), ablated(capture.projections, HEADS):
        raise KeyboardInterrupt
    assert hooks_of(capture) == before
    with pytest.raises(ValueError), ablated(capture.projections, {0: [1], 2: [4]}):
        raise AssertionError("not reached")
    assert hooks_of(capture) == before
    assert all(np.array_equal(values, intact[pair]) for pair, values in rows_of(capture).items())


@pytest.mark.parametrize("head", [4, -1])
def test_heads_that_are_not_there_are_refused(head: int, capture: Capture) -> None:
    with pytest.raises(ValueError, match=rf"^layer 2 has heads 0 to 3, not \[1, {head}\]$"):
        ablated(capture.projections, {2: [1, head]}).__enter__()


def test_fills_of_other_shapes_and_layers_without_heads_are_refused(capture: Capture) -> None:
    width = projection_of(capture, 2).head_dim
    with pytest.raises(ValueError, match=r"^layer 2 has 4 heads of \d+, the fill is"):
        ablated(capture.projections, {2: [1]}, {2: np.zeros((width, 4))}).__enter__()
    with pytest.raises(ValueError, match=r"^layer 2 has no heads: none here$"):
        ablated({2: NoHeads("none here")}, {2: [1]}).__enter__()


def test_rows_come_in_the_order_of_their_positions(capture: Capture) -> None:
    expected = rows_of(capture)
    made = texts()
    batches = [pad([3, 0], [made[3], made[0]], POOLINGS), pad([1], [made[1]], POOLINGS), pad([2], [made[2]], POOLINGS)]
    found = forward_rows(capture, batches, Budget(1000), print)
    assert_near(found, expected)


def test_rows_that_are_no_numbers_are_refused(capture: Capture) -> None:
    width = projection_of(capture, 1).head_dim
    infinite = {1: np.full((4, width), np.inf)}
    refused = pytest.raises(UserError, match="activations are not finite numbers; fp16")
    with refused, ablated(capture.projections, {1: [0]}, infinite):
        forward_rows(capture, [pad(range(4), texts(), POOLINGS)], Budget(1000), print)

"""Ranks hold whole heads and even parts, and read nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.config import parse_config
from engine.errors import ConfigError
from engine.generation.adapters.files import AdapterWeights
from engine.generation.decoder.loading import Checkpoint
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec
from engine.generation.engine import Engine
from engine.generation.parallel.group import Ranks
from engine.generation.parallel.split import Part, adapter_part, part_spec


class Rank(Ranks):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def test_tensor_parallel_that_does_not_divide_the_heads_is_refused_with_what_does(tiny_model: Path):
    smol = replace(read_spec(tiny_model), num_heads=9, num_kv_heads=3, intermediate_size=1536)
    expected = r"tensor_parallel=2 does not fit the model: .* 9 heads, 3 heads of keys .* Set it to one of: 1, 3\."
    with pytest.raises(ConfigError, match=expected):
        part_spec(smol, 2)
    part = part_spec(smol, 3)
    assert (part.num_heads, part.num_kv_heads, part.intermediate_size, part.hidden_size) == (3, 1, 512, 64)
    # More ranks than heads of keys and values: those are not repeated.
    with pytest.raises(ConfigError, match="Set it to one of: 1, 3"):
        part_spec(smol, 9)


def test_tensor_parallel_engine_alone_in_its_process_says_what_is_missing(tiny_model: Path):
    settings = parse_config({"generator": {"tensor_parallel": 2, "dtype": "float32"}}, "test").generator
    with pytest.raises(ConfigError, match="tensor_parallel=2 needs as many processes, here 1"):
        Engine(tiny_model, settings)


def test_tensor_parallel_refuses_weights_rounded_by_choice():
    with pytest.raises(ConfigError, match="weights=int8 needs tensor_parallel 1, it is 2"):
        parse_config({"generator": {"tensor_parallel": 2, "weights": "int8"}}, "test")


@pytest.mark.parametrize("length", [1, 7, 8, 9])
def test_tensor_parallel_parts_cover_everything_once(length: int):
    parts = [range(length)[Part(rank, 4).of(length)] for rank in range(4)]
    assert [place for part in parts for place in part] == list(range(length))


def test_tensor_parallel_rank_reads_its_part_of_the_file_alone(tiny_model: Path):
    spec = read_spec(tiny_model)
    whole = Decoder(tiny_model, spec, dtype=torch.float32, device="cpu")
    ranks = [Decoder(tiny_model, spec, dtype=torch.float32, device="cpu", ranks=Rank(rank, 2)) for rank in range(2)]
    assert sum(rank.product_bytes for rank in ranks) == whole.product_bytes
    with Checkpoint(tiny_model, torch.float32, "cpu") as stored:
        name, shape = "model.layers.0.self_attn.o_proj.weight", (64, 64)
        parts = [stored.read(name, shape, Part(rank, 2, dim=1)) for rank in range(2)]
        assert torch.equal(torch.cat(parts, 1), stored.read(name, shape))


def test_tensor_parallel_parts_of_an_adapter_add_up_to_it():
    drawn = torch.Generator().manual_seed(0)
    pairs = {
        (0, target): (torch.randn(4, 6, generator=drawn), torch.randn(8, 4, generator=drawn)) for target in ("q", "o")
    }
    x, weights = torch.randn(6, generator=drawn), AdapterWeights("d", 4, pairs)
    parts = [adapter_part(weights, Part(rank, 2)).pairs for rank in range(2)]
    outputs = [b @ (a @ x) for a, b in (part[0, "q"] for part in parts)]
    torch.testing.assert_close(torch.cat(outputs), pairs[0, "q"][1] @ (pairs[0, "q"][0] @ x))
    halves = (x[:3], x[3:])
    partial = [part[0, "o"][1] @ (part[0, "o"][0] @ half) for part, half in zip(parts, halves, strict=True)]
    torch.testing.assert_close(sum(partial), pairs[0, "o"][1] @ (pairs[0, "o"][0] @ x))

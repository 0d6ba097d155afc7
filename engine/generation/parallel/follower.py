"""Every rank but the first: it holds its part of the model, and does what the first one says until that is gone."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch

from engine.config import GeneratorSettings
from engine.generation import model_files
from engine.generation.adapters.store import AdapterStore
from engine.generation.attention import build_attention
from engine.generation.cache_size import cache_size
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec
from engine.generation.parallel.adapters import empty_adapter, fill, num_elements
from engine.generation.parallel.group import LOAD_S, RankGroup
from engine.generation.parallel.messages import Operation, decode_copy, decode_put, decode_step, operation_of
from engine.generation.parallel.split import part_spec
from engine.generation.runner import Runner
from engine.generation.warm_up import take_cores


class Follower:
    """One rank's part of the model. One thread calls it."""

    def __init__(self, path: Path, settings: GeneratorSettings, ranks: RankGroup, *, device: str = "cpu") -> None:
        """Load this rank's part of the model in folder `path`; arguments are those of the first rank's Engine.

        Raises: ModelSourceError, ConfigError; RankLost when another rank dies meanwhile.
        """
        take_cores(settings)
        spec, dtype = read_spec(path), model_files.resolve_dtype(settings.dtype, device)
        size = cache_size(spec, settings, dtype, device, ranks)
        part = part_spec(spec, ranks.size)
        decoder = Decoder(path, spec, dtype=dtype, device=device, weights=settings.weights, ranks=ranks)
        attention = build_attention(
            part,
            num_blocks=size.num_blocks,
            max_model_len=size.max_model_len,
            dtype=dtype,
            device=decoder.device,
        )
        self._ranks = ranks
        self._dtype = dtype
        self._store = AdapterStore(part, num_slots=settings.adapter_slots, dtype=dtype, device=decoder.device)
        self._runner = Runner(decoder, attention, self._store)

    def run(self) -> None:
        """Follow until the first rank closes. Raises: RankLost when it is gone; whatever a step raises."""
        self._ranks.wait_for_all(LOAD_S)
        while True:
            message = self._ranks.receive()
            match operation_of(message):
                case Operation.STEP:
                    self._runner.compute(decode_step(message))
                case Operation.COPY:
                    self._runner.copy_blocks(decode_copy(message))
                case Operation.PUT:
                    place = decode_put(message)
                    adapter = empty_adapter(self._store, place)
                    content = torch.empty(num_elements(adapter), dtype=self._dtype)
                    self._ranks.receive_into(content)
                    fill(adapter, content)
                    self._store.put(place.slot, adapter)
                case Operation.BEAT:
                    self._ranks.wait_for_all()
                case Operation.STOP:
                    return


def follow(folder: Path, rank: int, model_path: Path, settings: GeneratorSettings, *, device: str = "cpu") -> None:
    """Be rank `rank` of those that meet in `folder`, until the first one closes or is gone. Raises: as Follower."""
    ranks = RankGroup(folder, rank, settings.tensor_parallel, device=device)
    with closing(ranks):
        Follower(model_path, settings, ranks, device=device).run()

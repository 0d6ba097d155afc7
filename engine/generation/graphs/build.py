"""Whether steps are recorded here, and what records them."""

from __future__ import annotations

import logging

from engine.config import GeneratorSettings
from engine.generation.adapters.store import AdapterStore
from engine.generation.attention.base import Attention
from engine.generation.attention.gpu import GpuAttention
from engine.generation.decoder.model import Decoder
from engine.generation.graphs.capture import CudaCapture
from engine.generation.graphs.decode_graphs import DecodeGraphs
from engine.generation.graphs.sizes import graph_sizes
from kernels.triton_absence import triton_absence

_log = logging.getLogger(__name__)


def build_graphs(
    decoder: Decoder,
    attention: Attention,
    store: AdapterStore | None,
    settings: GeneratorSettings,
    *,
    max_model_len: int,
) -> DecodeGraphs | None:
    """Graphs that have recorded nothing yet; None on a CPU, without Triton and where `settings` say off."""
    if settings.cuda_graphs == "off" or decoder.device.type != "cuda" or not isinstance(attention, GpuAttention):
        return None
    if (missing := triton_absence(decoder.device.type)) is not None:
        # Without it, attention of a fixed size would read as much as the longest context has.
        _log.info("steps are not recorded: Triton is absent, %s", missing)
        return None
    return DecodeGraphs(
        decoder,
        attention,
        store,
        CudaCapture(decoder.device),
        sizes=graph_sizes(settings.max_num_seqs),
        max_model_len=max_model_len,
    )

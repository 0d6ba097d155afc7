"""The versions of one adapter: which there are, in the order they were added, and which one its name stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.errors import DataFolderError, InvalidAdapter, UnknownVersion

VERSIONS_FILE = "versions.json"
VERSION_DIGITS = 12
MAX_VERSIONS = 5


class AdapterVersion(BaseModel):
    """One version. `version`, the first digits of its content digest, names its folder; `added_at` is a Unix time."""

    model_config = ConfigDict(frozen=True)

    version: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{VERSION_DIGITS}}}$")]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    added_at: Annotated[float, Field(allow_inf_nan=False)]

    @staticmethod
    def name_of(digest: str) -> str:
        """The version of a content digest."""
        return digest[:VERSION_DIGITS]


class AdapterVersions(BaseModel):
    """All versions of an adapter, oldest first; none of a plain folder. `current` is loaded where none is named."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    current: str | None = None
    versions: tuple[AdapterVersion, ...] = ()

    @model_validator(mode="after")
    def _current_is_one_of_them(self) -> Self:
        names = self.names()
        if len(set(names)) < len(names):
            raise ValueError("a version is listed twice")
        if (self.current is None) != (not names) or (names and self.current not in names):
            raise ValueError(f"the current version {self.current!r} is not one of them")
        return self

    def names(self) -> list[str]:
        """Oldest first."""
        return [each.version for each in self.versions]

    def find(self, adapter: str, version: str) -> str:
        """The version that `version` names: itself, or a whole digest. Raises: UnknownVersion."""
        return self.named(adapter, version).version

    def named(self, adapter: str, version: str) -> AdapterVersion:
        """As `find`, with its digest."""
        for each in self.versions:
            if version in (each.version, each.digest):
                return each
        raise UnknownVersion(adapter, version, self.names())

    def previous(self, adapter: str) -> str:
        """The version that was added before the current one. Raises: InvalidAdapter where there is none."""
        earlier = self.names()[: self.names().index(self.current)] if self.current else []
        if not earlier:
            why = f"version {self.current} is the oldest that is kept" if self.current else "it has no versions"
            raise InvalidAdapter(adapter, f"there is nothing to go back to: {why}")
        return earlier[-1]

    def using(self, version: str) -> AdapterVersions:
        """The same with another current version, which must be one of them."""
        return AdapterVersions(current=version, versions=self.versions)

    def adding(self, added: AdapterVersion) -> AdapterVersions:
        """With a version more, which is the current one. One that is there already counts as added now."""
        if self.current == added.version:
            return self
        others = tuple(each for each in self.versions if each.version != added.version)
        return AdapterVersions(current=added.version, versions=(*others, added))

    def keeping(self, in_use: set[str]) -> AdapterVersions:
        """Without those that are neither among the last MAX_VERSIONS, nor current, nor in use."""
        last = {each.version for each in self.versions[-MAX_VERSIONS:]} | in_use | {self.current}
        return AdapterVersions(
            current=self.current, versions=tuple(each for each in self.versions if each.version in last)
        )


def read_versions(folder: Path) -> AdapterVersions:
    """What versions.json in an adapter's folder lists; without one, no versions. Raises: DataFolderError."""
    path = folder / VERSIONS_FILE
    try:
        return AdapterVersions.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return AdapterVersions()
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else error.errors(include_url=False)[0]["msg"]
        raise DataFolderError(
            f"{path}: cannot be read ({why}). Delete it, put one version's files into {folder}, and load it anew."
        ) from None

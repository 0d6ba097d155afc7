"""Errors of PostgreSQL told apart by what a user can do about them."""

from __future__ import annotations

from engine.errors import DataFolderError, StorageFull, StoreUnavailable, SwitchyardError

_AWAY_CLASSES = ("08", "53", "57")  # connection lost, out of resources, shut down or cancelled by an operator
_AWAY = {"55P03", "40001", "40P01", "25P03"}  # waited too long for a lock, or gave way to somebody
_UNUSABLE_CLASSES = ("28", "3D", "3F")  # not allowed in, or no such database or schema
_UNUSABLE = {"42501", "25006"}  # not allowed to write there, or a read-only replica
_DISK_FULL = "53100"
# Errors of connecting come without a code.
_REFUSED_WORDS = ("authentication failed", "does not exist", "pg_hba.conf")
_AWAY_TYPES = ("OperationalError", "InterfaceError", "ConnectionTimeout")
_MAX_CHARS = 300


def translated(error: BaseException | None, where: str) -> SwitchyardError | None:
    """What a driver's error means for the store `where`, None for a mistake of this program."""
    state = getattr(error, "sqlstate", None)
    why = " ".join(str(error).split())[:_MAX_CHARS]
    if state == _DISK_FULL:
        return StorageFull(where)
    if state is None:
        is_refused = any(words in why for words in _REFUSED_WORDS)
        is_away = type(error).__name__ in _AWAY_TYPES
    else:
        is_refused = state in _UNUSABLE or state.startswith(_UNUSABLE_CLASSES)
        is_away = state in _AWAY or state.startswith(_AWAY_CLASSES)
    if is_refused:
        return DataFolderError(f"store {where}: cannot be used ({why}). Check SWITCHYARD_STORE and PGPASSWORD.")
    return StoreUnavailable(where, why) if is_away else None

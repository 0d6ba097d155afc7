"""How many generators there should be. Ray Serve calls the policy in its controller.

The controller gets this module's code by value, so it imports nothing of the project and needs no Ray itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# More than this share of the token slots in use: requests are about to wait for room.
_HIGH_KV_SHARE = 0.9
# With one replica fewer, the others must stay below this.
_LOW_KV_SHARE = 0.6
# Fewer tokens wait than this share of the limit: the limit and this are far apart, so a load that lies between them
# changes nothing.
_LOW_WAITING_SHARE = 0.125
# Of the tokens a second that a replica was seen to do under pressure, how many the remaining ones may be asked for.
_SAFE_SPEED_SHARE = 0.8


@dataclass(frozen=True)
class FleetLoad:
    """Means over the replicas: prompt tokens that wait, share of token slots in use, tokens a second computed."""

    waiting_tokens: float
    kv_share: float
    tokens_per_s: float


class ScalingPolicy:
    """More replicas when prompts have waited or room has been short for a while, fewer when one could go for longer.

    What a replica computed while too much waited is what one can do: a replica goes only when the others can do what
    is asked with some to spare. Without that, a load between what n and n + 1 can do would go up and down for ever.
    """

    def __init__(self, *, waiting_tokens: int, upscale_delay_s: float, downscale_delay_s: float) -> None:
        """More than `waiting_tokens` a replica is too much; both delays are how long that, or its opposite, must
        hold.
        """
        self._most_waiting = waiting_tokens
        self._upscale_delay_s = upscale_delay_s
        self._downscale_delay_s = downscale_delay_s
        self._speed: float | None = None
        self._high_since: float | None = None
        self._low_since: float | None = None

    def decide(self, load: FleetLoad, running: int, target: int, *, least: int, most: int, now_s: float) -> int:
        """How many replicas there should be, from `running` ones and `target` asked for so far."""
        bounded = min(max(target, least), most)
        if running <= 0 or bounded != target:
            self._high_since = self._low_since = None
            return bounded
        is_high = load.waiting_tokens > self._most_waiting or load.kv_share > _HIGH_KV_SHARE
        if is_high:
            # Half of a new observation: the requests of one moment are not those of another.
            self._speed = load.tokens_per_s if self._speed is None else (self._speed + load.tokens_per_s) / 2
        elif self._speed is not None:
            self._speed = max(self._speed, load.tokens_per_s)
        is_low = not is_high and target > least and self._is_low(load, running)
        self._high_since = _since(self._high_since, is_high, now_s)
        self._low_since = _since(self._low_since, is_low, now_s)
        if running < target:
            # Those asked for are on their way; what waits is theirs.
            self._high_since = None
        if self._high_since is not None and now_s - self._high_since >= self._upscale_delay_s:
            self._high_since = None
            return min(target + max(1, target // 2), most)
        if self._low_since is not None and now_s - self._low_since >= self._downscale_delay_s:
            self._low_since = None
            return max(target - 1, least)
        return target

    def _is_low(self, load: FleetLoad, running: int) -> bool:
        if running < 2 or load.waiting_tokens > _LOW_WAITING_SHARE * self._most_waiting:
            return False
        more = running / (running - 1)
        is_roomy = load.kv_share * more < _LOW_KV_SHARE
        return is_roomy and (self._speed is None or load.tokens_per_s * more < _SAFE_SPEED_SHARE * self._speed)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Ray Serve's `AutoscalingContext` in, replicas wanted and an empty state out."""
        metrics: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
        load = FleetLoad(*(_mean(metrics.get(name, {})) for name in ("waiting_tokens", "kv_share", "tokens_per_s")))
        wanted = self.decide(
            load,
            # Replicas that have not said anything yet are no less busy than they will be.
            len(metrics.get("waiting_tokens", {})),
            context.target_num_replicas,
            least=context.capacity_adjusted_min_replicas,
            most=context.capacity_adjusted_max_replicas,
            now_s=context.current_time,
        )
        return wanted, {}


def _since(since: float | None, holds: bool, now_s: float) -> float | None:
    if not holds:
        return None
    return now_s if since is None else since


def _mean(values: Mapping[Any, float]) -> float:
    return sum(values.values()) / len(values) if values else 0.0

"""How the replicas of a deployment are replaced when the service is deployed again with another configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

RollingUpdate = Literal["auto", "start_first", "stop_first"]
# Ray rounds what is reserved and free to ten-thousandths.
_ROUNDING = 1e-4


@dataclass(frozen=True, slots=True)
class Replica:
    """What one more replica of a deployment needs on one machine; the deployment has `num_replicas`."""

    deployment: str
    resources: Mapping[str, float]
    num_replicas: int


def max_surge_percent(
    mode: RollingUpdate, replicas: Sequence[Replica], free: Sequence[Mapping[str, float]]
) -> dict[str, int]:
    """By deployment, how many replicas in a hundred may be there beyond its number while it is updated.

    That is one replica, or none where there is no room for it: Ray would wait for room, and the update would not end.

    Args:
        mode: "auto" finds out by what is free; "start_first" is for clusters that add machines when replicas wait;
            "stop_first" takes no room.
        replicas: of the deployments that may run twice, the most important first.
        free: what is free on each machine now, by resource.
    """
    room = [dict(each) for each in free]
    found = {}
    for each in replicas:
        has_room = mode == "start_first" or (mode == "auto" and _place(each.resources, room))
        found[each.deployment] = max(100 // each.num_replicas, 1) if has_room else 0
    return found


def _place(resources: Mapping[str, float], room: Sequence[dict[str, float]]) -> bool:
    """Take the resources from the first machine that has them."""
    wanted = {name: amount for name, amount in resources.items() if amount}
    for machine in room:
        if all(machine.get(name, 0.0) >= amount - _ROUNDING for name, amount in wanted.items()):
            for name, amount in wanted.items():
                machine[name] -= amount
            return True
    return False

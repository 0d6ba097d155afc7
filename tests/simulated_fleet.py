"""Replicas of a generator as a discrete-event simulation: what a router's choices do to caches, slots and waits.

Each replica computes prompts one after the other at a fixed rate, keeps the beginnings used last up to its size and the
adapters used last up to its slots. Nothing here shares code with the router that it judges.
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from engine.generation.placement.placement import Placement
from engine.generation.placement.report import ReplicaReport
from engine.generation.placement.work import work_of
from engine.values import GenerationRequest, Message, SamplingParams

TOKENS_A_SECOND = 8000
CACHE_TOKENS = 300_000
SLOTS = 8
SWAP_S = 0.02
ANSWER_S = 2.0
ANSWER_TOKENS = 100
REPORT_S = 1.0
REPORT_DELAY_S = 0.2


@dataclass
class Replica:
    cached: OrderedDict[tuple[str, ...], int] = field(default_factory=OrderedDict)
    slots: OrderedDict[str, None] = field(default_factory=OrderedDict)
    size: int = 0
    free_s: float = 0.0
    ends: list[tuple[float, float, int]] = field(default_factory=list)  # first token, last token, tokens
    num_swaps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def take(self, request: GenerationRequest, now_s: float) -> float:
        """Compute a prompt after those that wait; returns when its first token comes."""
        parts = [request.adapter or "", *(passage.text for passage in request.passages)]
        parts[1:1] = [message.content for message in request.messages[:-1]]
        parts.append(request.messages[-1].content)
        total = hit = 0
        for end in range(2, len(parts) + 1):
            key = tuple(parts[:end])
            tokens = len(parts[end - 1]) // 4
            if key in self.cached and hit == total:
                hit += tokens
            total += tokens
            self.size += 0 if key in self.cached else tokens
            self.cached[key] = tokens
            self.cached.move_to_end(key)
        while self.size > CACHE_TOKENS:
            self.size -= self.cached.popitem(last=False)[1]
        swap_s = 0.0
        if request.adapter:
            if request.adapter not in self.slots:
                self.num_swaps += 1
                swap_s = SWAP_S
            self.slots[request.adapter] = None
            self.slots.move_to_end(request.adapter)
            if len(self.slots) > SLOTS:
                self.slots.popitem(last=False)
        self.prompt_tokens += total
        self.cached_tokens += hit
        self.free_s = max(self.free_s, now_s) + swap_s + (total - hit) / TOKENS_A_SECOND
        self.ends.append((self.free_s, self.free_s + ANSWER_S, total))
        return self.free_s

    def report(self, serial: int, now_s: float) -> ReplicaReport:
        self.ends = [each for each in self.ends if each[1] > now_s]
        running = [each for each in self.ends if each[0] <= now_s]
        return ReplicaReport(
            serial=serial,
            waiting_tokens=int(max(self.free_s - now_s, 0) * TOKENS_A_SECOND),
            running=len(running),
            kv_tokens=sum(each[2] for each in running),
            max_kv_tokens=CACHE_TOKENS,
            tokens_per_s=TOKENS_A_SECOND,
            adapters=frozenset(self.slots),
        )


class Router:
    """A gateway's choice of a replica."""

    def choose(self, request: GenerationRequest, replicas: list[Replica], now_s: float) -> int:
        raise NotImplementedError

    def hear(self, index: int, report: ReplicaReport, now_s: float) -> None: ...

    def done(self, request_id: str) -> None: ...


class RoundRobin(Router):
    def __init__(self) -> None:
        self._turns = count()

    def choose(self, request: GenerationRequest, replicas: list[Replica], now_s: float) -> int:
        return next(self._turns) % len(replicas)


class PowerOfTwo(Router):
    """Knows at every moment how many requests are in progress where, which no real one does."""

    def __init__(self) -> None:
        self._random = random.Random(5)

    def choose(self, request: GenerationRequest, replicas: list[Replica], now_s: float) -> int:
        pair = self._random.sample(range(len(replicas)), 2)
        return min(pair, key=lambda index: sum(end > now_s for _, end, _ in replicas[index].ends))


class Placing(Router):
    def __init__(self, num_replicas: int) -> None:
        self.placement = Placement()
        self.placement.keep([str(index) for index in range(num_replicas)])

    def choose(self, request: GenerationRequest, replicas: list[Replica], now_s: float) -> int:
        work = work_of(request.id, request)
        best = self.placement.rank(work, now_s)[0]
        self.placement.sent(work, best, now_s)
        return int(best)

    def hear(self, index: int, report: ReplicaReport, now_s: float) -> None:
        self.placement.report(str(index), report, now_s)

    def done(self, request_id: str) -> None:
        self.placement.done(request_id)


@dataclass(frozen=True)
class Outcome:
    cached_share: float
    num_swaps: int
    p95_wait_s: float
    busiest_share: float


def simulate(
    make_router: Callable[[], Router], *, seed: int = 1, num_replicas: int = 4, until_s: float = 180.0
) -> Outcome:
    """Conversations with adapters of a Zipf law, in bursts, through two gateways that know nothing of each other."""
    rng = random.Random(seed)
    replicas = [Replica() for _ in range(num_replicas)]
    gateways = [make_router() for _ in range(2)]
    adapters = [f"adapter{rank}" for rank in range(24)]
    weights = [1 / (rank + 1) ** 1.1 for rank in range(24)]
    events: list[tuple[float, int, Callable[[float], None]]] = []
    order, waits = count(), []

    def at(time_s: float, act: Callable[[float], None]) -> None:
        heapq.heappush(events, (time_s, next(order), act))

    def text(tokens: int) -> str:
        return f"{rng.getrandbits(64):016x} ".ljust(4 * tokens, "x")

    houses = {adapter: text(400) for adapter in adapters}

    def turn(adapter: str, history: tuple[Message, ...], left: int) -> Callable[[float], None]:
        def act(now_s: float) -> None:
            asked = (*history, Message("user", text(rng.randint(150, 500))))
            request = GenerationRequest(str(next(order)), asked, (), SamplingParams(), adapter)
            gateway = rng.choice(gateways)
            first_s = replicas[gateway.choose(request, replicas, now_s)].take(request, now_s)
            waits.append(first_s - now_s)
            at(first_s + ANSWER_S, lambda _: gateway.done(request.id))
            if left > 1:
                answered = (*asked, Message("assistant", text(ANSWER_TOKENS)))
                at(first_s + ANSWER_S + rng.uniform(2, 15), turn(adapter, answered, left - 1))

        return act

    def arrive(now_s: float) -> None:
        adapter = rng.choices(adapters, weights)[0]
        turn(adapter, (Message("system", houses[adapter]),), rng.randint(2, 7))(now_s)
        rate = 9.0 if now_s % 30 < 5 else 2.5
        at(now_s + rng.expovariate(rate), arrive)

    def tell(now_s: float) -> None:
        for index, replica in enumerate(replicas):
            report = replica.report(next(order), now_s)
            for gateway in gateways:
                at(now_s + REPORT_DELAY_S, lambda s, g=gateway, i=index, r=report: g.hear(i, r, s))
        at(now_s + REPORT_S, tell)

    at(0.0, tell)
    at(0.01, arrive)
    while events and events[0][0] < until_s:
        now_s, _, act = heapq.heappop(events)
        act(now_s)
    prompts = [replica.prompt_tokens for replica in replicas]
    return Outcome(
        cached_share=sum(replica.cached_tokens for replica in replicas) / sum(prompts),
        num_swaps=sum(replica.num_swaps for replica in replicas),
        p95_wait_s=sorted(waits)[int(0.95 * len(waits))],
        busiest_share=max(prompts) / sum(prompts),
    )

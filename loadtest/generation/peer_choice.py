"""Formats and settings in which the peers are fastest: they are raced at their best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.config import usable_cores
from loadtest.generation.plan import Findings, Plan
from loadtest.generation.systems import LlamaSetting, System, llama_server
from loadtest.generation.workloads import Job


class PeerChoice:
    """The peers' best formats and settings on the cases of one workload, narrow cases first.

    Cases too wide for trials take what suits wide steps: llama.cpp its best format and its way to guess of the widest
    case tried.
    """

    def __init__(self, plan: Plan, found: Findings, with_llama: bool) -> None:
        self._plan = plan
        self._found = found
        self._with_llama = with_llama
        self._llama_format = plan.llama_formats[0] if plan.llama_formats else ""
        self._llama_speculation = "none"

    async def dtype(
        self, case: str, jobs: Sequence[Job], clients: int, peers_of: Mapping[str, Sequence[System]]
    ) -> str:
        """Number format in which transformers takes the least time for these jobs; the last where none is tried."""
        tried: dict[str, str] = {}
        taken = list(peers_of)[-1]
        if len(peers_of) > 1 and clients <= self._plan.widest_trial:
            seconds = {each: await peers[0].seconds(jobs, clients) for each, peers in peers_of.items()}
            taken = min(seconds, key=lambda each: seconds[each])
            tried = {each: f"{value:.2f} s" for each, value in seconds.items()}
        self._found.extra.setdefault("transformers dtype", {})[case] = {"taken": taken, "tried": tried}
        return taken

    async def llama(self, case: str, jobs: Sequence[Job], clients: int) -> LlamaSetting | None:
        """llama.cpp's setting with the most tokens per second on these jobs: formats first, then the best format's
        slots and threads, then how it guesses, where our engine may guess as well. None without llama.cpp.
        """
        if not self._with_llama:
            return None
        cores = usable_cores()
        best = LlamaSetting(self._llama_format, clients, cores, self._llama_speculation)
        rates: dict[LlamaSetting, float] = {}
        if clients <= self._plan.widest_trial:
            for weights in self._plan.llama_formats:
                await self._try(rates, LlamaSetting(weights, clients, cores), jobs, clients)
            weights = max(rates, key=lambda setting: rates[setting]).weights
            others = ((max(clients // 2, 1), cores), (clients, max(cores - 1, 1)))
            for slots, threads in others if len(self._plan.llama_formats) > 1 else ():  # a quick run tries neither
                await self._try(rates, LlamaSetting(weights, slots, threads), jobs, clients)
            plain = max(rates, key=lambda setting: rates[setting])
            if any(job.drafts for job in jobs):
                for speculation in self._plan.llama_speculation:
                    await self._try(rates, plain._replace(speculation=speculation), jobs, clients)
            best = max(rates, key=lambda setting: rates[setting])
            self._llama_format, self._llama_speculation = weights, best.speculation
        tried = {str(setting): round(rate, 1) for setting, rate in rates.items()}
        self._found.extra.setdefault("llama.cpp settings", {})[case] = {"taken": str(best), "tried": tried}
        return best

    async def _try(
        self, rates: dict[LlamaSetting, float], setting: LlamaSetting, jobs: Sequence[Job], clients: int
    ) -> None:
        if setting not in rates:
            rates[setting] = await llama_rate(setting, jobs, clients)


async def llama_rate(setting: LlamaSetting, jobs: Sequence[Job], clients: int) -> float:
    """Tokens per second of a llama-server that is started for these jobs."""
    async with llama_server(setting, jobs) as llama:
        return sum(job.num_output for job in jobs) / await llama.seconds(jobs, clients)

"""From what a client asks to the jobs of the engine: which bank, how it is read, how tokens are chosen, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from memory3.decoding import decoding
from memory3.prompt import Prompt
from memory3.recall.retrieval import Retrieval
from memory3.serving.catalogue import Served
from memory3.serving.errors import invalid
from memory3.serving.fields import MemoryOptions, MemoryQuery
from memory3.serving.job import Job
from memory3.serving.keys import Tenant
from memory3.serving.state import ServerState

__all__ = ["Reading", "Sampling", "jobs_of", "reading_of"]

#: Below it, the likeliest token is all that is left.
COLDEST = 0.01


@dataclass(frozen=True)
class Reading:
    """What is read, and how.

    Attributes:
        served: the bank; None: none.
        mode: ``"memory"``, ``"text"`` or ``"none"``.
        retrieval: what is looked up.
    """

    served: Served | None
    mode: str
    retrieval: Retrieval


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, as a client says it. What it leaves open is None.

    Attributes:
        tokens: of an answer at most, and the name of the field that says so.
        temperature: 0: always the likeliest token, which is also what happens where nothing is said.
        top_p: only the likeliest tokens that have this probability together.
        seed: of the random numbers; the choices of one request have this and those behind it.
        stop: texts that end the answer.
        logprobs: how many of the likeliest tokens to tell beside each.
        ignore_eos: go on to the length that was asked for, whatever the model says.
    """

    tokens: tuple[str, int | None] = ("max_tokens", None)
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    logprobs: int | None = None
    ignore_eos: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """As transformers names them. An answer is drawn by chance at a temperature above 0, or where ``top_p`` is below 1 and
        no temperature is given, which then is 1.
        """
        top_p = 1.0 if self.top_p is None else self.top_p
        temperature = self.temperature
        if temperature is None:
            temperature = 1.0 if top_p < 1 else 0.0
        if temperature < COLDEST:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p), "top_k": 0}


def reading_of(
    state: ServerState, tenant: Tenant, model: str, options: MemoryOptions | None = None, query: MemoryQuery | None = None
) -> Reading:
    """What a request reads.

    Args:
        state: of the server.
        tenant: who asks.
        model: id that was asked.
        options: of the body; they win.
        query: of the address.

    Raises:
        Refused: 404, there is no such model for this tenant; 400, an option that cannot be followed.
    """
    served = state.banks.of_model(model, tenant)
    options, query = options or MemoryOptions(), query or MemoryQuery()
    mode = options.mode or query.mode or ("memory" if served else "none")
    k = query.k if options.k is None else options.k
    gap = query.gap if options.gap is None else options.gap
    if mode != "none" and served is None:
        seen = ", ".join(state.banks.id_of(one.name) for one in state.banks.seen_by(tenant)[:5]) or "none is served"
        raise invalid(
            "memory3.mode", f"mode {mode!r} reads a bank, which the model {model!r} has not: ask a model of a bank ({seen})"
        )
    if mode == "none":
        given = {"k": k, "gap": gap, "where": options.where}
        for name, value in given.items():
            if value is not None:
                raise invalid(f"memory3.{name}", f"{name} has no effect in mode 'none': leave it out, or ask in another mode")
        return Reading(None, mode, Retrieval(0))
    if k is not None and k > state.limits.k:
        raise invalid("memory3.k", f"k is {k}: this server reads {state.limits.k} references at once at most")
    return Reading(served, mode, state.m3.retrieval(k, gap, options.where))


def jobs_of(
    state: ServerState,
    prompts: Sequence[Prompt | Sequence[int]],
    reading: Reading,
    sampling: Sampling,
    choices: int = 1,
) -> list[Job]:
    """The jobs of one request, those of a prompt one after the other.

    Args:
        state: of the server.
        prompts: questions, chats, or tokens.
        reading: what is read.
        sampling: how tokens are chosen.
        choices: answers to each prompt.

    Raises:
        Refused: 400, more than this server does.
    """
    limits = state.limits
    if len(prompts) * choices > limits.choices:
        raise invalid(
            "n", f"{len(prompts) * choices} answers are asked for: this server gives {limits.choices} at once at most"
        )
    stop = [sampling.stop] if isinstance(sampling.stop, str) else list(sampling.stop or ())
    if len(stop) > limits.stops:
        raise invalid("stop", f"stop has {len(stop)} texts: this server takes {limits.stops} at most")
    field, tokens = sampling.tokens
    if tokens is not None and tokens > limits.most_answer_tokens:
        raise invalid(field, f"{field} is {tokens}: this server gives {limits.most_answer_tokens} tokens at most")
    length = (
        min(limits.answer_tokens, limits.most_answer_tokens, state.m3.prompts.positions // 4) if tokens is None else tokens
    )
    settings, _ = decoding(state.m3.model, length, sampling.options)
    job = Job(
        prompt="",
        settings=settings,
        mode=reading.mode,
        bank=reading.served.bank if reading.served else None,
        retrieval=reading.retrieval,
        stop=stop,
        logprobs=sampling.logprobs,
        seconds=limits.seconds,
        ignore_eos=sampling.ignore_eos,
    )
    seeds = [None if sampling.seed is None else (sampling.seed + n) % 2**63 for n in range(choices)]
    return [replace(job, prompt=prompt, seed=seed) for prompt in prompts for seed in seeds]

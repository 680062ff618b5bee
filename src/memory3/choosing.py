"""How one request chooses its next token, as ``model.generate()`` of transformers would: the same processors in the same
order, for engines that run their own loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from memory3.errors import ConfigError, setting

__all__ = ["Choice", "Chooser"]


@dataclass(frozen=True)
class Choice:
    """A token that was chosen.

    Attributes:
        token: its id.
        logprob: its log-probability by the model's own logits, in nats; None unless asked for.
        likeliest: the likeliest tokens with theirs, likeliest first; as many as were asked for.
    """

    token: int
    logprob: float | None = None
    likeliest: list[tuple[int, float]] = field(default_factory=list)


class Chooser:
    """Chooses the tokens of one request.

    Attributes:
        ends: ids that end its answer.
        length: tokens of its answer at most.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: GenerationConfig,
        prompt: Sequence[int],
        *,
        ends: Sequence[int] = (),
        seed: int | None = None,
        logprobs: int | None = None,
    ) -> None:
        """
        Args:
            model: whose ``generation_config`` fills in what is left open.
            settings: as `memory3.decoding.decoding` gives them.
            prompt: token ids.
            ends: ids that end an answer beside those of the settings.
            seed: of its own random numbers; None: they come from the clock.
            logprobs: how many of the likeliest tokens to tell, beside the log-probability of each chosen one; None: neither.

        Raises:
            ConfigError: settings that need more than one sequence for an answer (beams and the like).
        """
        # The private methods are those that generate() itself calls; a test compares the two.
        generating: Any = model
        whole, _ = generating._prepare_generation_config(settings)
        if (whole.num_beams or 1) > 1 or whole.prompt_lookup_num_tokens:
            raise ConfigError(f"{setting('num_beams')} and assisted decoding are not batched: use m3.generate")
        device = model.device
        generating._prepare_special_tokens(whole, True, device=device, batch_size=1)
        eos = whole.eos_token_id
        self.ends = {*(eos if isinstance(eos, list | tuple) else [] if eos is None else [eos]), *ends}
        self.length = int(whole.max_new_tokens)
        whole.max_length = len(prompt) + self.length
        prompt_ids = torch.tensor([list(prompt)], device=device)
        self._processors: Any = generating._get_logits_processor(
            generation_config=whole, input_ids_seq_length=len(prompt), encoder_input_ids=prompt_ids, device=str(device)
        )
        self._ids = prompt_ids if len(self._processors) else None
        self._samples = bool(whole.do_sample)
        self._random: torch.Generator | None = None
        if self._samples:
            self._random = torch.Generator(device)
            if seed is None:
                self._random.seed()
            else:
                self._random.manual_seed(seed)
        self._logprobs = logprobs

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is that of the largest logit, and nothing else is asked for."""
        return not self._samples and self._ids is None and self._logprobs is None

    def choose(self, logits: torch.Tensor) -> Choice:
        """The next token.

        Args:
            logits: ``[V]`` of the last token, on the model's device.
        """
        scores = logits.float()
        logprob, likeliest = None, []
        own = torch.log_softmax(scores, -1) if self._logprobs is not None else None
        if self._ids is not None:
            scores = self._processors(self._ids, scores[None].clone())[0]
        if self._samples:
            token = int(torch.multinomial(torch.softmax(scores, -1), 1, generator=self._random))
        else:
            token = int(scores.argmax())
        if own is not None:
            logprob = float(own[token])
            values, tokens = own.topk(min(self._logprobs or 0, len(own)))
            likeliest = list(zip(tokens.tolist(), values.tolist(), strict=True))
        if self._ids is not None:
            self._ids = torch.cat([self._ids, self._ids.new_tensor([[token]])], dim=1)
        return Choice(token, logprob, likeliest)

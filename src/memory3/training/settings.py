"""`Settings` of a training run: frozen, validated, JSON both ways, so that a run can be resumed and repeated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory3.config import Budget, MemoryConfig
from memory3.errors import ConfigError
from memory3.files import read_json

__all__ = ["DPO", "KINDS", "SCHEDULES", "SFT", "STORED_NAMES", "WARMUP", "Mixture", "Settings"]

#: What a pass trains; see `memory3.training.groups`.
KINDS = ("memory", "text", "none", "continue", "plain", "recite", "chunks", "packed", "prompt", "preference")
#: How the learning rate goes down from its largest: over the last ``decay`` of the steps, or all the way along a cosine.
SCHEDULES = ("stable", "cosine")


#: Settings whose name in files is another one.
STORED_NAMES = {"cloze": "blanks"}

#: It learns to read all that are found, where the paper has them.
_MEMORY = MemoryConfig(
    budget=Budget.parse("adaptive:360"), score_gap=2.0, arrangement="parallel", memory_temperature=1.0, rank_discount=0.0
)


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of passes; they need not add up to 1.

    Attributes:
        memory: questions answered from memories, distractors among them.
        text: questions answered from the same references as text in the prompt.
        none: prompts and questions without references.
        continue_: texts continued with memories of similar texts. Written ``continue`` in JSON.
        plain: texts continued without.
        recite: references said again from their memories, each called by its first tokens.
        chunks: the paper's sequences.
        packed: the same without memories: ordinary pretraining.
        prompt: prompts answered behind memories of what is retrieved for them (`SFT`).
        preference: the same with two answers, one of which is better (`DPO`).
    """

    memory: float = 0.6
    text: float = 0.15
    none: float = 0.08
    continue_: float = 0.1
    plain: float = 0.07
    recite: float = 0.0
    chunks: float = 0.0
    packed: float = 0.0
    prompt: float = 0.0
    preference: float = 0.0

    @property
    def retrieves(self) -> bool:
        """Whether any kind needs references."""
        return bool(self.memory or self.text or self.continue_ or self.recite or self.chunks or self.prompt or self.preference)

    def __post_init__(self) -> None:
        wrong = {name: share for name, share in self.shares().items() if not (isinstance(share, int | float) and share >= 0)}
        if wrong or not sum(self.shares().values()):
            raise ConfigError(f"the mixture {self.shares()} needs shares from 0, not all 0")

    def shares(self) -> dict[str, float]:
        """By kind."""
        return {kind: getattr(self, "continue_" if kind == "continue" else kind) for kind in KINDS}

    @classmethod
    def of(cls, shares: Mapping[str, float]) -> Mixture:
        """From shares by kind; kinds that are not named get none."""
        unknown = set(shares) - set(KINDS)
        if unknown:
            raise ConfigError(f"{', '.join(sorted(unknown))} is no kind of pass: use {', '.join(KINDS)}")
        all_shares = {kind: shares.get(kind, 0.0) for kind in KINDS}
        return cls(**{("continue_" if kind == "continue" else kind): share for kind, share in all_shares.items()})


@dataclass(frozen=True)
class Settings:
    """A run of training. The defaults are those of `memory3 train continual`: an adapter that reads 360 pairs per reference.

    Attributes:
        model: catalogue name, hub id or folder.
        shape: of a model from scratch (`memory3.models.sizes`), which uses the tokenizer of ``model``; "": the model itself.
        data: files of records.
        bank: folder of a bank to retrieve references from, its own model's; "": the passages and texts of the data.
        records: records taken of each file at most, sampled, all questions on a passage together; 0: all.
        held_out: files or folders that must not be trained on.
        memory: how memories are written and read; what is trained is what is served.
        steps: optimiser steps.
        epochs: rounds over the prompts or preferences, in place of ``steps``; 0: as many steps as ``steps`` says.
        passes: forward and backward passes per step and process (gradient accumulation).
        groups: groups per pass.
        cloze: questions made of each text, by leaving out a name, number or date (`memory3.training.cloze`); 0: none.
        questions: questions of a group at most.
        texts: texts of a group at most.
        text_length: tokens of a text at most.
        sequence_length: tokens of a sequence of chunks (paper: 2048), and of a prompt with its answer at most; longer ones are
            left out.
        rate: largest learning rate.
        schedule: one of `SCHEDULES`.
        warmup: steps over which the rate rises; below 1 a share of all steps.
        decay: share of the steps, the last, over which it falls.
        distil: weight of how far the model is, reading the pairs that are kept, from itself reading all of them
            (`memory3.training.live.distilled_loss`), in passes that read memories; 0: not looked at.
        beta: of preferences: how far the model may go from where it was (R. Rafailov et al. 2023, eq. 7).
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        rank: of LoRA; 0 trains all weights.
        alpha: of LoRA; its product is scaled by alpha / rank.
        targets: ``"all-linear"``, or names of modules with commas between.
        strength: what the adapter is multiplied by when it leaves the run, between the model without it (0) and what was
            trained (1): further from the data it was trained on, less of it can be better (M. Wortsman et al. 2022, for all
            weights).
        dtype: of frozen weights and of products; weights that are trained are float32. ``"auto"``: bfloat16 where the device
            has it; a run's own settings name the one it got.
        checkpointing: recompute activations in the backward pass: less RAM, a third more time.
        seed: of the data's order, LoRA's start and everything random.
        save_every: steps between two checkpoints.
        keep: checkpoints kept.
        eval_every: steps between two looks at held-back records; 0: none.
        eval_groups: groups per kind that are held back for it.
        mixture: shares of the kinds of passes.
    """

    model: str = "smollm2-135m-instruct"
    shape: str = ""
    data: tuple[str, ...] = ()
    bank: str = ""
    records: int = 0
    held_out: tuple[str, ...] = ()
    memory: MemoryConfig = _MEMORY
    steps: int = 500
    epochs: float = 0.0
    passes: int = 3
    groups: int = 1
    cloze: int = 0
    questions: int = 12
    texts: int = 3
    text_length: int = 192
    sequence_length: int = 2048
    rate: float = 3e-4
    schedule: str = "stable"
    warmup: float = 20
    decay: float = 0.2
    distil: float = 0.0
    beta: float = 0.01
    weight_decay: float = 0.0
    clip: float = 1.0
    rank: int = 16
    alpha: int = 32
    targets: str = "all-linear"
    strength: float = 1.0
    dtype: str = "auto"
    checkpointing: bool = False
    seed: int = 0
    save_every: int = 50
    keep: int = 2
    eval_every: int = 100
    eval_groups: int = 4
    mixture: Mixture = field(default_factory=Mixture)

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("steps", "passes", "groups", "questions", "texts", "text_length", "sequence_length"), 1)
        counts |= dict.fromkeys(("save_every", "keep", "alpha"), 1)
        counts |= dict.fromkeys(("records", "cloze", "rank", "seed", "eval_every", "eval_groups"), 0)
        for name, low in counts.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigError(f"{name} must be a whole number from {low}, not {value!r}")
        shares = dict.fromkeys(("rate", "decay", "beta", "strength"), 1.0)
        for name, high in (shares | dict.fromkeys(("warmup", "epochs", "distil", "weight_decay", "clip"), 1e9)).items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= high:
                raise ConfigError(f"{name} must be a number from 0 to {high:g}, not {value!r}")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule {self.schedule!r} is unknown: use one of {', '.join(SCHEDULES)}")
        if self.sequence_length < self.memory.chunk_length:
            raise ConfigError(
                f"sequence_length {self.sequence_length} is less than a chunk of {self.memory.chunk_length} tokens"
            )
        rising, falling = self.warmup_steps, self.decay * self.steps * (self.schedule == "stable")
        if not self.epochs and rising + falling > self.steps:
            raise ConfigError(f"{rising} steps of warm-up and {falling:g} of decay do not fit into {self.steps} steps")
        if self.shape and self.rank:
            raise ConfigError("a model from scratch has no weights worth freezing: give rank 0")
        if self.strength != 1 and not self.rank:
            raise ConfigError(
                f"strength {self.strength:g} is an adapter's, and rank 0 trains all weights: leave it out, or give a rank"
            )
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"dtype {self.dtype!r} cannot be trained in: use float32, bfloat16 or auto")

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return math.ceil(self.warmup * self.steps) if self.warmup < 1 else round(self.warmup)

    def replace(self, **changes: Any) -> Settings:
        """A copy with some settings changed."""
        given = {name: value.to_dict() if isinstance(value, MemoryConfig) else value for name, value in changes.items()}
        stored = {STORED_NAMES.get(name, name): value for name, value in given.items()}
        return Settings.from_dict({**self.to_dict(), **stored})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        out = {STORED_NAMES.get(f.name, f.name): getattr(self, f.name) for f in dataclasses.fields(self)}
        return out | {
            "data": list(self.data),
            "held_out": list(self.held_out),
            "memory": self.memory.to_dict(),
            "mixture": self.mixture.shares(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Settings:
        """Inverse of `to_dict`; settings that are left out have their defaults.

        Args:
            data: by name, or by the name in files (`STORED_NAMES`).

        Raises:
            ConfigError: an unknown setting, or a value that is none of its kind.
        """
        names = {stored: name for name, stored in STORED_NAMES.items()}
        data = {names.get(name, name): value for name, value in data.items()}
        unknown = set(data) - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}")
        given: dict[str, Any] = dict(data)
        if isinstance(given.get("memory"), Mapping):
            given["memory"] = MemoryConfig.from_dict({**_MEMORY.to_dict(), **given["memory"]})
        if isinstance(given.get("mixture"), Mapping):
            given["mixture"] = Mixture.of(given["mixture"])
        for name in ("data", "held_out"):
            if name in given:
                given[name] = tuple(map(str, given[name]))
        return cls(**given)

    @classmethod
    def read(cls, path: str | Path) -> Settings:
        """From a JSON file."""
        try:
            data = read_json(Path(path))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: settings cannot be read ({error})") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: settings are one JSON object")
        return cls.from_dict(data)


#: Of `memory3 train warmup`: ordinary pretraining at a size for two CPU cores. Weight decay 0.1, the last tenth decays
#: (arXiv 2407.01178, section 5).
WARMUP = Settings(
    shape="memory3-4m",
    steps=2000,
    passes=1,
    groups=8,
    sequence_length=512,
    rate=1e-3,
    warmup=100,
    decay=0.1,
    weight_decay=0.1,
    rank=0,
    save_every=200,
    eval_every=200,
    mixture=Mixture.of({"packed": 1}),
)

#: Of `memory3 train sft` (arXiv 2407.01178, section 5): all weights, a cosine from 5e-5, 10% warm-up, weight decay 0.1, 512
#: prompts
#: a step, 2048 tokens, 3 epochs.
SFT = Settings(
    epochs=3,
    passes=256,
    groups=2,
    rate=5e-5,
    schedule="cosine",
    warmup=0.1,
    weight_decay=0.1,
    rank=0,
    save_every=5,
    eval_every=5,
    mixture=Mixture.of({"prompt": 1}),
)

#: Of `memory3 train dpo`: the paper gives the rate and beta; the rest is as in `SFT`, with fewer pairs a step.
DPO = SFT.replace(epochs=1, passes=16, rate=4e-6, beta=0.01, mixture={"preference": 1})

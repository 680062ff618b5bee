"""`MemoryConfig`: every setting that decides what a memory is and how it is read. Knows no model and no disk.

Settings come in three kinds. *Writing* settings (layers, budget, selector, reference length, prefix, dtype) change
a memory, so they enter the bank's fingerprint. *Storing* settings (codec) change the bytes a memory is kept in and not what it
is: a bank knows its own. *Reading* settings (chunk length, references per chunk) may differ from one question to the next.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from memory3.errors import ConfigError
from memory3.files import parse_json

__all__ = ["CODEC_FORM", "DTYPES", "PRESETS", "Budget", "MemoryConfig"]

LAYER_PRESETS = ("all", "first_half", "middle_half", "last_half")
DTYPES = ("float32", "float16", "bfloat16")
ARRANGEMENTS = ("row", "tight", "parallel")
#: Settings that banks and adapters keep by an older name.
STORED_NAMES = {"prefix": "beginning"}
BUDGET_KINDS = ("uniform", "adaptive", "all")
#: How budgets are written, and what that means.
BUDGET_FORMS = {
    "adaptive:1/8": "fraction of all",
    "adaptive:1440": "pairs",
    "uniform:8": "tokens per head",
    "all": "",
}
#: Slots of the padded tensors for each pair in them, adaptive budget, five references: 15,135 / 7,200 (research/log.md).
RAGGED_PADDING = 2.1
#: How the name of a codec is written: ``NAME``, ``NAME:OPTIONS``, or two for keys and values, ``KEYS+VALUES``. Which there are
#: says `memory3.codec.registry`.
CODEC_FORM = re.compile(r"(?=.{1,200}\Z)[a-z][a-z0-9_]*(:[\w,.-]+)?(\+[\w,.:-]+)?", re.ASCII)


@dataclass(frozen=True)
class Budget:
    """How many key-value pairs of a reference are kept.

    Attributes:
        kind: ``"uniform"``: ``amount`` tokens in every KV head of every memory layer (the paper). ``"adaptive"``: one budget
            over all memory layers, heads and tokens, ``amount`` being a fraction of the dense number (memory layers x KV heads
            x reference length) when at most 1, and a number of pairs above. ``"all"``: every token of every head.
        amount: tokens, fraction or pairs, as said; ignored for ``"all"``.
    """

    kind: str
    amount: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in BUDGET_KINDS:
            raise ConfigError(f"budget kind {self.kind!r} is unknown: use one of {', '.join(BUDGET_KINDS)}")
        if self.kind == "all":
            return
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise ConfigError(f"budget {self.kind}:{self.amount} keeps nothing: give a positive number")
        if (self.kind == "uniform" or self.amount > 1) and self.amount != int(self.amount):
            raise ConfigError(f"budget {self.kind}:{self.amount} is not a whole number of tokens or pairs")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``"uniform:8"``, ``"adaptive:1/8"``, ``"adaptive:0.125"``, ``"adaptive:1440"`` or ``"all"``."""
        kind, _, amount = text.strip().partition(":")
        if kind == "all" and not amount:
            return cls("all")
        try:
            number = float(Fraction(amount.strip()))
        except (ValueError, ZeroDivisionError):
            raise ConfigError(
                f"budget {text!r} is not understood: write uniform:8 (tokens per head), adaptive:1/8 (fraction of all "
                "pairs), adaptive:1440 (pairs) or all"
            ) from None
        return cls(kind, number)

    @property
    def selects(self) -> bool:
        """Is anything left out, so that a selector must say what?"""
        return self.kind != "all"

    @property
    def padding(self) -> float:
        """Slots that attention reads for each pair kept: heads of unequal length are padded to the longest."""
        return RAGGED_PADDING if self.kind == "adaptive" else 1.0

    @classmethod
    def help(cls) -> str:
        """What the option ``--budget`` says: every kind in half a sentence."""
        return ", ".join(f"{form} ({text})" if text else form for form, text in BUDGET_FORMS.items())

    def __str__(self) -> str:
        return "all" if self.kind == "all" else f"{self.kind}:{self.amount:g}"

    def tokens_per_head(self, reference_length: int) -> int | None:
        """Equal number of tokens every head keeps, or None where heads differ (adaptive)."""
        if self.kind == "all":
            return reference_length
        return min(int(self.amount), reference_length) if self.kind == "uniform" else None

    def pairs(self, heads: int, reference_length: int) -> int:
        """Key-value pairs kept per reference. At least one.

        Args:
            heads: memory layers x KV heads.
            reference_length: tokens of a reference at most.
        """
        dense = heads * reference_length
        if self.kind == "all":
            return dense
        if self.kind == "uniform":
            return heads * min(int(self.amount), reference_length)
        return max(1, min(dense, round(dense * self.amount) if self.amount <= 1 else int(self.amount)))


@dataclass(frozen=True)
class MemoryConfig:
    """What a memory is and how it is read. Immutable, validated, JSON both ways.

    Attributes:
        layers: memory layers: a preset (``"all"``, ``"first_half"``, ``"middle_half"``, ``"last_half"``), a slice as text
            (``"4:20"``, ``"::2"``) or explicit indices.
        budget: see `Budget`; a text such as ``"adaptive:1/8"`` is parsed.
        selector: name of the token selector (`memory3.encode.selectors`).
        biases: whether each kept pair has a bias on its logits, so that what is kept draws the attention that all pairs drew
            (`memory3.encode.mass`). A byte a pair; codec ``"raw"`` alone keeps it.
        reference_length: tokens per reference at most, and the number of positions memories occupy (paper: 128).
        prefix: text every reference is encoded behind. ``"auto"``: cut from the chat template where there is one,
            ``"<bos>Reference:"`` otherwise. ``"<bos>"`` in it stands for the model's own token.
        dtype: number format of stored keys and values.
        codec: how a new bank keeps memories, by a name of `memory3.codec.registry`: ``"raw"``, ``"int8"``,
            ``"transform:BITS"``, ``"product:FACTORY"``, ``"predicted:BITS"`` and others, or two for keys and for values,
            ``"int8+int4"``. ``"auto"``: the default codec where it was fitted to the model and these settings, else raw. Here
            only the form is looked at; what makes memories or a bank of the settings looks for the codec.
        chunk_length: tokens between two recalls (paper: 64).
        references_per_chunk: references read at once at most (paper: 5).
        score_gap: of those, only references whose cosine is within this of the best one's; 2 leaves none out (the paper). A
            model that was not trained to read several references at once is confused by them, and the best one is the right
            one most of the time (research/log.md).
        arrangement: where references that are read at once lie. ``"row"``: one before the other, the best one next to what
            reads it. ``"tight"``: the same, each ending where the next one begins. ``"parallel"``: all in the same positions
            (the paper). A model that was not trained for it reads a row better.
        memory_temperature: what the logits of memories are divided by where they are read; 1: nothing (the paper). Below 1 a
            model looks at fewer of the pairs and at them harder (research/log.md).
        rank_discount: what the logits of a reference are lowered by, in nats, for each more similar one that is read with it;
            0: nothing (the paper). Search is right about the best one more often than not, and in text its place says so.
    """

    layers: str | tuple[int, ...] = "all"
    budget: Budget = Budget("adaptive", 0.125)
    selector: str = "reconstruction"
    biases: bool = False
    reference_length: int = 128
    prefix: str = "auto"
    dtype: str = "float16"
    codec: str = "auto"
    chunk_length: int = 64
    references_per_chunk: int = 5
    score_gap: float = 0.1
    arrangement: str = "row"
    memory_temperature: float = 0.9
    rank_discount: float = 0.3

    #: Settings that change a memory, as `to_dict` names them.
    WRITING = ("layers", "budget", "selector", "biases", "reference_length", "beginning", "dtype")
    #: Settings that came later: where they are what they were before, nothing says them, and fingerprints stay as they were.
    LATER: ClassVar[Mapping[str, Any]] = {"biases": False, "rank_discount": 0.0}
    #: Settings that change the bytes it is kept in, and nothing else.
    STORING = ("codec",)

    def __post_init__(self) -> None:
        if isinstance(self.budget, str):
            object.__setattr__(self, "budget", Budget.parse(self.budget))
        if isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))
        if not isinstance(self.layers, str) and not all(isinstance(i, int) and i >= 0 for i in self.layers):
            raise ConfigError(f"layers {self.layers!r}: indices must be whole numbers from 0")
        if not isinstance(self.layers, str) and len(set(self.layers)) != len(self.layers):
            raise ConfigError(f"layers {self.layers!r} names a layer twice")
        for name, low, high in (
            ("reference_length", 1, 4096),
            ("chunk_length", 1, 65536),
            ("references_per_chunk", 0, 1024),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
        if not isinstance(self.score_gap, int | float) or not 0 <= self.score_gap <= 2:
            raise ConfigError(
                "score_gap must be a number from 0 (the best reference alone) to 2 (all that are found), "
                f"not {self.score_gap!r}"
            )
        if not isinstance(self.memory_temperature, int | float) or not 0.1 <= self.memory_temperature <= 10:
            raise ConfigError(f"memory_temperature must be a number from 0.1 to 10, not {self.memory_temperature!r}")
        if not isinstance(self.rank_discount, int | float) or not 0 <= self.rank_discount <= 10:
            raise ConfigError(f"rank_discount must be a number from 0 to 10, not {self.rank_discount!r}")
        if self.arrangement not in ARRANGEMENTS:
            raise ConfigError(f"arrangement {self.arrangement!r} is unknown: use one of {', '.join(ARRANGEMENTS)}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r} is unknown: use one of {', '.join(DTYPES)}")
        if not isinstance(self.codec, str) or not CODEC_FORM.fullmatch(self.codec):
            raise ConfigError(
                f"codec {self.codec!r:.80} is no name of a codec: write NAME, NAME:OPTIONS or KEYS+VALUES, such as int8+int4"
            )
        if not isinstance(self.biases, bool):
            raise ConfigError(f"biases must be true or false, not {self.biases!r}")
        if self.biases and self.codec not in ("auto", "raw"):
            raise ConfigError(f"codec {self.codec!r} keeps no biases yet: use raw, or leave biases out")
        if not isinstance(self.prefix, str):
            raise ConfigError(f"prefix must be text, not {self.prefix!r}")
        if not isinstance(self.selector, str) or not self.selector:
            raise ConfigError(f"selector must be a name, not {self.selector!r}")

    def memory_layers(self, num_layers: int) -> tuple[int, ...]:
        """Indices of the memory layers of a model with ``num_layers`` blocks, ascending."""
        if not isinstance(self.layers, str):
            beyond = [i for i in self.layers if i >= num_layers]
            if beyond:
                raise ConfigError(f"layers {beyond} do not exist: the model has layers 0 to {num_layers - 1}")
            chosen = tuple(sorted(self.layers))
        elif self.layers in LAYER_PRESETS:
            half = max(1, num_layers // 2)
            start = {"all": 0, "first_half": 0, "middle_half": (num_layers - half) // 2, "last_half": num_layers - half}
            count = num_layers if self.layers == "all" else half
            chosen = tuple(range(start[self.layers], start[self.layers] + count))
        else:
            try:
                parts = [int(p) if p.strip() else None for p in self.layers.split(":")]
                if not 2 <= len(parts) <= 3:
                    raise ValueError
                chosen = tuple(sorted(range(num_layers)[slice(*parts)]))
            except ValueError:
                raise ConfigError(
                    f"layers {self.layers!r} is not understood: use {', '.join(LAYER_PRESETS)}, a slice such as 4:20, "
                    "or a list of indices"
                ) from None
        if not chosen:
            raise ConfigError(f"layers {self.layers!r} selects none of the model's {num_layers} layers")
        return chosen

    def replace(self, **changes: Any) -> MemoryConfig:
        """A copy with some settings changed."""
        unknown = set(changes) - {f.name for f in dataclasses.fields(self)}
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, by the names that banks and adapters keep."""
        out = {STORED_NAMES.get(f.name, f.name): getattr(self, f.name) for f in dataclasses.fields(self)}
        out["budget"] = str(self.budget) if self.budget.kind == "all" else f"{self.budget.kind}:{self.budget.amount!r}"
        if not isinstance(self.layers, str):
            out["layers"] = list(self.layers)
        return {name: value for name, value in out.items() if name not in self.LATER or value != self.LATER[name]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MemoryConfig:
        """Inverse of `to_dict`. Unknown keys are an error: they come from another version. What was stored before there were
        arrangements is parallel, before there was a temperature, 1, and before ranks counted, without a discount.
        """
        names = {stored: name for name, stored in STORED_NAMES.items()}
        data = {names.get(name, name): value for name, value in data.items()}
        unknown = set(data) - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}")
        return cls(**{"arrangement": "parallel", "memory_temperature": 1.0, **cls.LATER, **data})

    def to_json(self) -> str:
        """One line of JSON with sorted keys, so equal configs give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> MemoryConfig:
        """Inverse of `to_json`."""
        return cls.from_dict(parse_json(text))

    @classmethod
    def preset(cls, name: str) -> MemoryConfig:
        """A named configuration of `PRESETS`."""
        if name not in PRESETS:
            raise ConfigError(f"preset {name!r} is unknown: use one of {', '.join(PRESETS)}")
        return PRESETS[name]


#: ``default``: adaptive budget of 1/8 of the dense pairs by reconstruction. ``paper``: first half of the layers, 8 tokens per
#: head by attention mass. ``full``: everything, read as the text itself would be.
PRESETS: dict[str, MemoryConfig] = {
    "default": MemoryConfig(),
    "paper": MemoryConfig(
        layers="first_half",
        budget=Budget("uniform", 8),
        selector="attention",
        codec="raw",
        score_gap=2.0,
        arrangement="parallel",
        memory_temperature=1.0,
        rank_discount=0.0,
    ),
    "full": MemoryConfig(budget=Budget("all"), selector="first", codec="raw", memory_temperature=1.0, rank_discount=0.0),
}

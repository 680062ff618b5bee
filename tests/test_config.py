"""`MemoryConfig` and `Budget`: what they accept, what they refuse, JSON both ways."""

from __future__ import annotations

from typing import Any

import pytest

from memory3.config import PRESETS, Budget, MemoryConfig
from memory3.errors import ConfigError


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", (0, 1, 2, 3, 4, 5, 6)),
        ("first_half", (0, 1, 2)),
        ("middle_half", (2, 3, 4)),
        ("last_half", (4, 5, 6)),
        ("1:4", (1, 2, 3)),
        ("::3", (0, 3, 6)),
        ("-2:", (5, 6)),
        ((5, 1), (1, 5)),
    ],
)
def test_layers(layers: Any, expected: tuple[int, ...]) -> None:
    assert MemoryConfig(layers=layers).memory_layers(7) == expected


def test_budget() -> None:
    # 90 heads of 128 tokens: the figures of the default model.
    assert Budget.parse("adaptive:1/8").pairs(90, 128) == 1440
    assert Budget.parse("adaptive:360").pairs(90, 128) == 360
    assert Budget.parse("uniform:8").pairs(45, 128) == 360
    assert Budget.parse("all").pairs(90, 128) == 11520
    assert Budget.parse("uniform:500").pairs(2, 128) == 256
    assert Budget.parse("adaptive:1e-9").pairs(2, 3) == 1
    assert (Budget.parse("uniform:8").tokens_per_head(128), Budget.parse("adaptive:1/8").tokens_per_head(128)) == (8, None)


@pytest.mark.parametrize("config", [*PRESETS.values(), MemoryConfig(layers=(3, 1), budget=Budget("adaptive", 1 / 3))])
def test_json_both_ways(config: MemoryConfig) -> None:
    assert MemoryConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": "adaptive:0"}, "keeps nothing"),
        ({"budget": "uniform:-3"}, "keeps nothing"),
        ({"budget": "uniform:2.5"}, "whole number"),
        ({"budget": "adaptive:1/0"}, "not understood"),
        ({"budget": "adaptive:nan"}, "not understood"),
        ({"budget": "generous:3"}, "'generous'"),
        ({"layers": (1, 1)}, "twice"),
        ({"layers": (-1,)}, "from 0"),
        ({"reference_length": 0}, "reference_length"),
        ({"reference_length": True}, "reference_length"),
        ({"chunk_length": -64}, "chunk_length"),
        ({"references_per_chunk": 10**9}, "references_per_chunk"),
        ({"references_per_chunk": 2.5}, "references_per_chunk"),
        ({"dtype": "int3"}, "'int3'"),
        ({"selector": ""}, "selector"),
        ({"prefix": None}, "prefix"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MemoryConfig(**settings)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="'layer_count'"):
        MemoryConfig(layers="layer_count").memory_layers(4)
    with pytest.raises(ConfigError, match="selects none"):
        MemoryConfig(layers="5:5").memory_layers(4)
    with pytest.raises(ConfigError, match="unknown settings: colour"):
        MemoryConfig.from_dict({"colour": "red"})
    with pytest.raises(ConfigError, match="unknown settings: colour"):
        MemoryConfig().replace(colour="red")
    with pytest.raises(ConfigError, match="'cheap'"):
        MemoryConfig.preset("cheap")
    with pytest.raises(AttributeError):
        MemoryConfig().dtype = "float32"  # type: ignore[misc]


def test_what_was_stored_before_there_were_arrangements_is_read_as_it_was() -> None:
    old = MemoryConfig(score_gap=0.05).to_dict()
    assert old.pop("arrangement") == "row"
    assert old.pop("memory_temperature") == MemoryConfig().memory_temperature
    assert old.pop("rank_discount") == MemoryConfig().rank_discount
    assert MemoryConfig.from_dict(old) == MemoryConfig(
        score_gap=0.05, arrangement="parallel", memory_temperature=1.0, rank_discount=0.0
    )
    with pytest.raises(ConfigError, match="circle"):
        MemoryConfig(arrangement="circle")
    for wrong in (0.0, float("nan"), "warm"):
        with pytest.raises(ConfigError, match="temperature"):
            MemoryConfig(memory_temperature=wrong)  # type: ignore[arg-type]

"""The planner's arithmetic: shapes, the paper's costs and sizes, and those of this library, against numbers worked out by
hand.
"""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import tiny
import torch
from bank_writer import SHAPE
from codebooks import fitted
from hand_costs import ODD, lines
from transformers import AutoConfig, AutoModelForCausalLM

from memory3.bank import indexes, snapshot
from memory3.codec import CodedCodec
from memory3.codec.factory import default_factory, table_shapes
from memory3.codec.kinds.product import Product
from memory3.codec.quantiser import Quantiser
from memory3.codec.raw import record_size
from memory3.config import PRESETS, Budget, MemoryConfig
from memory3.encode.encoder import Encoder
from memory3.errors import ConfigError, InputError, MissingDependency, ModelError, UnsupportedModel
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_ADAPTED
from memory3.models.frame import Frame
from memory3.models.sizes import PAPER_MODEL, SHAPES, ModelSizes, sizes_of
from memory3.planner import figure, library
from memory3.planner.cost import Cost, Setting, Term, explicit, external, implicit, paper_costs
from memory3.planner.library import Search, library_costs
from memory3.planner.storage import codec_cost, library_bytes, paper_bytes, reference_count

PAPER_SHAPE = SHAPES[PAPER_MODEL]
ODD_SETTING = Setting(reference=5, kept=4, chunk=8, training=10, memory_layers=2)


def three(value):
    """Three significant digits."""
    return float(f"{value:.3g}")


# ---- the paper's figures -------------------------------------------------------------------------------------------------


def test_the_papers_costs_to_three_digits():
    costs = paper_costs(PAPER_SHAPE)
    assert [three(cost.write_flops / 1e12) for cost in costs.formats().values()] == [2.24, 0.308, 0]
    assert [three(cost.read_flops / 1e12) for cost in costs.formats().values()] == [0, 1.44e-4, 0.624]
    assert [three(end) for end in costs.interval] == [0.494, 13400]


def test_the_papers_sizes_to_three_digits():
    sizes = paper_bytes(PAPER_SHAPE)
    total = {name: each * 112_000_000 for name, each in sizes.items()}
    assert three(total["dense"] / 2**50) == 7.17
    assert three(total["sparse"] / 2**40) == 45.9
    assert three(total["quantised"] / 2**40) == 4.02
    assert sizes["dense"] / sizes["sparse"] == 160
    assert round(sizes["dense"] / sizes["quantised"], -1) == 1830


def test_the_papers_model_has_the_weights_it_says():
    assert round(PAPER_SHAPE.block_weights / 1e9, 1) == 2.4


# ---- every term by hand --------------------------------------------------------------------------------------------------


def test_implicit_by_hand():
    # Attention matrices: 11*42 twice, 11*14 twice = 1232; MLP: 3*11*13 = 429.
    terms = [term.flops for term in implicit(ODD, ODD_SETTING).write]
    assert terms == [6 * 3 * 5 * 1232, 6 * 3 * 5 * 429, 6 * 3 * 2 * 5 * 5 * 42, 6 * 5 * 17 * 11]
    assert implicit(ODD, ODD_SETTING).read_flops == 0


def test_explicit_by_hand():
    cost = explicit(ODD, ODD_SETTING)
    assert [term.flops for term in cost.write] == [2 * 2 * 5 * 1232, 2 * 2 * 25 * 42, 2 * 1 * 5 * 429, 2 * 2 * 25 * 42]
    assert cost.read_flops == 2 * 2 * 2 * 8 * 4 * 42


def test_external_by_hand():
    cost = external(ODD, ODD_SETTING)
    assert [term.flops for term in cost.read] == [2 * 3 * 5 * 1232, 2 * 3 * 2 * 5 * 10.5 * 42, 2 * 2 * 5 * 429]
    assert cost.write_flops == 0


def test_the_total_is_writing_once_and_reading_so_often():
    cost = Cost((Term("a", "", 7.0), Term("b", "", 4.0)), (Term("c", "", 2.5),))
    assert cost.total(3) == 18.5


def test_the_interval_by_hand():
    assert lines().interval == (2, 90)
    assert lines(explicit=(10, 0)).interval == (10 / 6, math.inf)
    assert lines(external=(0, 1)).interval == (math.inf, 90)
    assert lines(explicit=(0, 1)).interval == (0, 100)
    low, high = lines(explicit=(99, 5)).interval
    assert low > high


@pytest.mark.parametrize(
    "costs", [lines(), lines(explicit=(10, 0)), lines(external=(0, 1)), lines(explicit=(99, 5)), paper_costs(ODD, ODD_SETTING)]
)
def test_the_cheapest_format_is_the_least_of_three_lines(costs):
    for uses in (0, 0.5, 1, 1.9, 2.1, 17, 89, 91, 10**6):
        totals = {name: cost.total(uses) for name, cost in costs.formats().items()}
        assert totals[costs.cheapest(uses)] == min(totals.values()) == costs.least(uses)
        low, high = costs.interval
        if low < high and uses not in (low, high):
            assert (costs.cheapest(uses) == "explicit") == (low < uses < high)


# ---- this library's format -----------------------------------------------------------------------------------------------

CONFIG = MemoryConfig(
    codec="raw", layers=(0, 2), budget=Budget("adaptive", 9), reference_length=5, chunk_length=8, references_per_chunk=3
)


def parts(cost):
    return {term.name: term.flops for term in (*cost.write, *cost.read)}


def test_the_library_by_hand(monkeypatch):
    monkeypatch.setattr(library, "PREFIX_TOKENS", 4)
    monkeypatch.setattr(library, "CUE_TOKENS", 3)
    config = CONFIG.replace(layers=(0, 1), codec="product")
    costs = library_costs(ODD, config, references=1000)
    said = parts(costs.explicit)
    # Two layers run, the last without its output matrix (42 x 11) and MLP; 2 x 5 + 3 = 13 tokens, each beside 4 of the prefix.
    assert said["attention matrices"] == 2 * 13 * (2 * (1232 - 462) + 462)
    assert said["attention"] == 2 * 2 * 2 * 13 * 17 * 42
    assert said["MLP"] == 2 * 13 * 429
    assert said["selection of tokens"] == 2 * 2 * 25 * 42
    assert said["attention to memory"] == 4 * 8 * 9 * 3 * 7
    assert said["attention to padding"] == pytest.approx(1.1 * 4 * 8 * 9 * 3 * 7)
    assert costs.explicit.read[-1].flops == pytest.approx(2 * 1000 * 384 / 3)
    assert costs.external.read[-1].flops == costs.explicit.read[-1].flops
    assert [term.flops for term in costs.explicit.write if "codec" in term.name] == [2 * 9 * (2 * 49 + 2 * 17408 * 7)]
    assert [term.flops for term in costs.explicit.read if "codec" in term.name] == [2 * 9 * 12 * 7]


def test_one_pass_without_selection_where_everything_is_kept():
    said = parts(library_costs(ODD, CONFIG.replace(layers=(2,), budget="all"), tokens=4).explicit)
    assert said["selection of tokens"] == 0
    assert said["attention"] == 2 * 2 * 2 * 4 * (library.PREFIX_TOKENS + 4) * 42  # two of the three layers run
    assert said["attention to padding"] == 0


def test_the_librarys_text_is_the_papers_bound_and_one_mlp():
    config = MemoryConfig()
    own, paper = library_costs(PAPER_SHAPE, config).external, paper_costs(PAPER_SHAPE).external
    terms = [term.flops for term in own.read if "query" not in term.name and "search" not in term.name]
    assert sum(terms) == paper.read_flops + 2 * 128 * PAPER_SHAPE.mlp_weights


def test_what_the_planner_repeats_of_the_library_is_what_the_library_does(tiny_chat_tokenizer):
    assert library.RESIDENT_BYTES == snapshot.RESIDENT_BYTES
    for references in (1, 90_000, 1_000_003, 10**9):
        search = Search(references, 384)
        cells, probed = indexes.partitions(references), indexes.nprobes(references)
        slow = references if search.is_exact else min(references, cells + probed * math.ceil(references / cells))
        assert search.compared == slow
        assert search.is_exact == (references * 384 * 4 <= snapshot.RESIDENT_BYTES)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_record_has_the_size_that_the_bank_gives_it(preset, dtype, tiny_model, tiny_tokenizer):
    config = PRESETS[preset].replace(dtype=dtype, reference_length=37, codec="raw")
    m3 = Memory3(tiny_model(), tiny_tokenizer, config)
    shape = ModelSizes(5, 6, 2, 14, 24, 22, 320)
    assert library_bytes(shape, config).record == record_size(m3.shape)


@pytest.mark.parametrize("codec", ["int8", "int4", "foretold:8+16"])
@pytest.mark.parametrize("positions", [128, 257])
def test_a_coded_record_has_the_size_that_its_codec_gives_it(codec, positions):
    made = CodedCodec(fitted(codec, positions=positions))
    shape = ModelSizes(7, 6, SHAPE.kv_heads, SHAPE.head_dim, 11, 13, 17)
    config = MemoryConfig(layers=SHAPE.layers, budget=Budget("adaptive", SHAPE.pairs), reference_length=positions, codec=codec)
    assert library_bytes(shape, config).record == made.record_size


@pytest.mark.parametrize("head_dim", [64, 80])
def test_the_product_codec_is_the_quantiser_that_the_library_uses(head_dim):
    factory, product = default_factory(head_dim), Product().cost(head_dim)
    shapes = table_shapes(factory, head_dim)
    quantiser = Quantiser.of(factory, head_dim, {name: torch.zeros(shape) for name, shape in shapes.items()})
    assert product.bytes == quantiser.code_size
    # To encode, every number of the rotation and of the tables is multiplied and added once; to decode, a row of each table is
    # added and the head's, and the sum multiplied by the head's width.
    assert product.encode_flops == 2 * sum(math.prod(shape) for shape in shapes.values())
    assert product.decode_flops == (len(quantiser.rows()) + 1 + 1) * head_dim


def test_bytes_by_hand():
    config = MemoryConfig(codec="raw", layers=(0, 2), budget=Budget("uniform", 3), reference_length=5)
    own = library_bytes(ODD, config, dimension=11, tokens=4, text_bytes=19)
    # 4 heads of 3 tokens: 12 pairs of two vectors of 7 numbers in two bytes, 12 positions, 4 counts.
    assert own.record == 2 * 4 + 2 * 12 + 12 * 2 * 7 * 2
    assert (own.text, own.embedding) == (19 + 16, 44)
    assert own.disk - own.text_only == own.record
    assert library_bytes(ODD, config.replace(codec="product")).record == 2 * 4 + 12 + 12 * 2 * 14


# ---- shapes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_shape_read_from_a_config_counts_the_models_weights(family, tmp_path):
    model = tiny.tiny_model(family)
    model.config.save_pretrained(tmp_path)
    shape = sizes_of(str(tmp_path))
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == (5, 6, 2, 14)
    small = sum(weight.numel() for name, weight in model.named_parameters() if weight.ndim == 1)  # norms and biases
    assert shape.weights == sum(weight.numel() for weight in model.parameters()) - small


def test_only_the_config_is_read(tmp_path):
    tiny.tiny_model().config.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert sizes_of(str(tmp_path)).layers == 5


@pytest.mark.real
def test_the_catalogues_shape_is_that_of_the_model(default_model_path):
    assert sizes_of(default_model_path) == SHAPES["smollm2-135m-instruct"] == sizes_of(DEFAULT_ADAPTED)


@pytest.mark.real
def test_the_prefix_and_the_cue_are_those_of_the_default_model(default_model_path):
    from transformers import AutoTokenizer

    frame = Frame.of(AutoTokenizer.from_pretrained(default_model_path), MemoryConfig())
    assert (len(frame.prefix), len(frame.repeat)) == (library.PREFIX_TOKENS, library.CUE_TOKENS)


def test_windowed_layers_hold_no_memories(tmp_path):
    config = AutoConfig.for_model(
        "qwen2",
        num_hidden_layers=5,
        layer_types=["full_attention", "sliding_attention"] * 2 + ["full_attention"],
        sliding_window=9,
    )
    config.save_pretrained(tmp_path)
    shape = sizes_of(str(tmp_path))
    assert shape.windowed == (1, 3)
    assert shape.memory_layers(MemoryConfig()) == (0, 2, 4)
    with pytest.raises(UnsupportedModel, match=r"layers \[3\] attend within a window"):
        shape.memory_layers(MemoryConfig(layers=(2, 3)))


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("gpt2", {}, "not Llama-like|no rotary"),
        ("mixtral", {}, "mixture of experts"),
        ("mistral", {"sliding_window": 7}, "all 32 layers attend within a window"),
        (
            "qwen2",
            {"num_hidden_layers": 4, "layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 9},
            "2 of 4 layers attend within a window",
        ),
        (
            "gemma4_text",
            {"num_hidden_layers": 6},
            "5 of 6 layers attend within a window",
        ),  # sizes that differ by kind of layer
    ],
)
def test_models_whose_costs_are_others_are_refused(kind, settings, said, tmp_path):
    AutoConfig.for_model(kind, **settings).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=said):
        sizes_of(str(tmp_path))


def test_the_planner_and_the_model_agree_on_the_memory_layers(tiny_model, tiny_tokenizer, tmp_path):
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    for layers in ("all", "first_half", "middle_half", "1:4", (0, 3)):
        config = MemoryConfig(layers=layers)
        encoder: Encoder = Memory3(model, tiny_tokenizer, config).encoder
        assert sizes_of(str(tmp_path)).memory_layers(config) == encoder.shape.layers


# ---- nonsense ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (lambda: sizes_of("memory3-24b"), ModelError, "Did you mean 'memory3-2.4b'"),
        (lambda: sizes_of("."), ModelError, "is unknown"),
        (lambda: ModelSizes(0, 6, 2, 7, 11, 13, 17), ConfigError, "layers 0"),
        (lambda: ModelSizes(3, 5, 2, 7, 11, 13, 17), ConfigError, "5 query heads cannot share 2 KV heads"),
        (lambda: Setting(reference=-1), ConfigError, "reference is -1"),
        (lambda: Setting(reference=5, kept=6), ConfigError, "6 of 5 tokens cannot be kept"),
        (lambda: explicit(ODD, Setting(memory_layers=4)), ConfigError, "4 memory layers cannot be had"),
        (lambda: lines().explicit.total(-1), ConfigError, "cannot be used -1 times"),
        (lambda: lines().explicit.total(math.nan), ConfigError, "cannot be used nan times"),
        (lambda: codec_cost(ODD, CONFIG.replace(codec="zip")), ConfigError, "'zip' is unknown"),
        (lambda: library_costs(ODD, CONFIG, tokens=6), ConfigError, "references of 6 tokens"),
        (lambda: library_costs(ODD, CONFIG, embedder="ada"), ConfigError, "'ada' is unknown"),
        (lambda: reference_count("-3"), ConfigError, "-3 references"),
        (lambda: reference_count("many"), ConfigError, "many references"),
        (lambda: reference_count("1.5"), ConfigError, "1.5 references"),
        (lambda: reference_count("inf"), ConfigError, "inf references"),
    ],
)
def test_nonsense_is_refused_with_the_reason(wrong, error, said):
    with pytest.raises(error, match=said.replace("[", r"\[")):
        wrong()


def test_counts_of_references_may_have_an_exponent():
    assert reference_count("1.12e8") == 112_000_000


# ---- figures and imports -------------------------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n"


def test_figure_4_is_a_png(tmp_path):
    figure.draw_costs(paper_costs(PAPER_SHAPE), tmp_path / "costs.png", title="costs")
    assert (tmp_path / "costs.png").read_bytes().startswith(PNG)
    figure.draw_costs(lines(explicit=(99, 5)), tmp_path / "never.png")
    assert (tmp_path / "never.png").read_bytes().startswith(PNG)


def test_a_figure_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        figure.draw_costs(lines(), tmp_path / "no" / "costs.png")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r"memory3\[plots\]"):
        figure.draw_costs(lines(), tmp_path / "costs.png")


def test_the_arithmetic_imports_no_torch():
    modules = "allocation, capacity, cost, figure, library, machine, storage, traffic, usage"
    imports = f"import sys; from memory3.models import sizes; from memory3.planner import {modules}"
    code = f"{imports}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_meta_models_count_the_same(tmp_path):
    """The default model's weights, counted without having them."""
    config = AutoConfig.for_model(
        "llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, vocab_size=49152, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    norms = sum(weight.numel() for weight in model.parameters() if weight.ndim == 1)
    assert SHAPES["smollm2-135m-instruct"].weights == sum(weight.numel() for weight in model.parameters()) - norms

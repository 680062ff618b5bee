"""Embeddings without sentence-transformers: the same bits as with it, and only for folders that ask for no more."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from memory3.bank.embedder import Embedder
from memory3.bank.mean_pooling import MeanPooling

TEXTS = ["Who built the bridge?", "", "  spaces  ", "\n", "a b c " * 400, "Über die Brücke"]
TEXTS += [f"Text number {n} " * (n * 7 % 23 + 1) for n in range(37)]


def by_library(folder, texts):
    """What sentence-transformers makes of texts, as a bank has always asked it."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), model_kwargs={"use_safetensors": True}, trust_remote_code=False)
    return model.encode(texts, batch_size=11, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)


@pytest.fixture
def folder(default_embedder_path, tmp_path):
    """A copy of the default embedder, to be changed."""
    return Path(shutil.copytree(default_embedder_path, tmp_path / "embedder"))


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_default_embedder_is_embedded_to_the_bit(folder):
    plain = MeanPooling.load(str(folder))
    assert plain is not None
    found = plain.encode(TEXTS, batch_size=11)
    assert found.dtype == np.float32
    assert np.array_equal(found, by_library(folder, TEXTS))
    assert np.array_equal(plain.encode(TEXTS[:1]), by_library(folder, TEXTS[:1]))


def test_without_the_module_that_normalises_and_with_shorter_texts_to_the_bit(folder):
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    change(folder / "sentence_bert_config.json", max_seq_length=7)
    plain = MeanPooling.load(str(folder))
    assert plain is not None
    assert np.array_equal(plain.encode(TEXTS, batch_size=11), by_library(folder, TEXTS))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}),
        ("1_Pooling/config.json", {"include_prompt": False}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
        ("sentence_bert_config.json", {"unpad_inputs": True}),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}),
        ("config.json", {"model_type": "mpnet"}),
    ],
)
def test_what_asks_for_more_is_left_to_the_library(folder, name, values):
    change(folder / name, **values)
    assert MeanPooling.load(str(folder)) is None


@pytest.mark.parametrize("missing", ["modules.json", "sentence_bert_config.json", "1_Pooling/config.json"])
def test_what_is_not_of_this_kind_is_left_to_the_library(folder, missing):
    (folder / missing).unlink()
    assert MeanPooling.load(str(folder)) is None


def test_an_embedder_of_a_bank_is_this_one_or_the_librarys(folder):
    ours = Embedder.load(str(folder))
    change(folder / "1_Pooling/config.json", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    librarys = Embedder.load(str(folder))
    assert (ours.dimension, librarys.dimension) == (384, 384)
    assert np.array_equal(librarys.encode(TEXTS[:3]), by_library(folder, TEXTS[:3]))
    assert not np.allclose(ours.encode(TEXTS[:3]), librarys.encode(TEXTS[:3]), atol=1e-3)


def test_threads_that_embed_beside_one_another_get_what_one_gets(default_embedder_path):
    embedder = Embedder.load(default_embedder_path)
    jobs = [["a word", f"{n} words " * (1 + n % 7)] for n in range(40)]
    alone = [embedder.encode(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        for mine, theirs in zip(pool.map(embedder.encode, jobs), alone, strict=True):
            np.testing.assert_array_equal(mine, theirs)

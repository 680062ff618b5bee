"""What every test starts from: no network, one thread, the same random numbers."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test that reaches for a hub fails at once
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import object_store
import pytest
import tiny
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

pytest.register_assert_rewrite("chat_surface", "strangers")  # tests that several files take
torch.set_num_threads(1)  # tests run in parallel processes; see `make test`


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (libraries under test draw from it)
    torch.manual_seed(0)


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    """``tiny_model(family, mha=False, seed=0, **config)``: see `tiny.tiny_model`."""
    return tiny.tiny_model


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tiny_tokenizer()


@pytest.fixture
def tiny_chat_tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tiny_chat_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny Llama and its chat tokenizer."""
    folder: Path = tmp_path_factory.mktemp("tiny-llama")
    return tiny.save_tiny(folder, chat=True)


@pytest.fixture(scope="session")
def default_model_path() -> str:
    """The default language model's folder; for tests marked ``real``. `make test` fetches it beforehand."""
    from memory3.models.catalogue import resolve_model

    return resolve_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def default_embedder_path() -> str:
    """The default embedder's folder; for tests marked ``real``."""
    from memory3.models.catalogue import resolve_embedder

    return resolve_embedder("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def _object_store() -> Iterator[object_store.Server]:
    with object_store.serving() as server:
        yield server


@pytest.fixture
def s3(_object_store: object_store.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[object_store.Server]:
    """An S3 server without faults, to which the environment leads; see `object_store`. The cache folder is empty."""
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))
    for name, value in _object_store.environment().items():
        monkeypatch.setenv(name, value)
    yield _object_store
    _object_store.mend()

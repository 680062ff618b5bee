import json

import pytest
from typer.testing import CliRunner

from memory3.cli.app import app
from memory3.errors import ConfigError, InputError, ModelError
from memory3.models.catalogue import DEFAULT_MODEL
from memory3.models.scratch import from_scratch
from memory3.training.vocabulary import train_vocabulary


def test_small_tokenizer_makes_a_small_model(tmp_path):
    text = "The river rises behind the old town, and the bridge stands five miles from the sea."
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"{text} {n}"}) + "\n" for n in range(7)))
    given = ["train", "tokenizer", "--data", tmp_path / "texts.jsonl", "--size", 600, "--out", tmp_path / "tokens", "--json"]
    done = CliRunner().invoke(app, [str(a) for a in given])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)["tokens"]
    model, tokens = from_scratch("memory3-2m", str(tmp_path / "tokens"))
    assert len(tokens) == made <= 600
    assert tokens.chat_template
    assert tokens.decode(tokens(text).input_ids) == text
    assert len(tokens(text).input_ids) < len(text) / 3  # it merged what came often
    assert model.config.vocab_size == 4096
    with pytest.raises(ConfigError, match="give 512 to"):
        train_vocabulary(DEFAULT_MODEL, [tmp_path / "texts.jsonl"], 7, tmp_path / "x")
    (tmp_path / "none.jsonl").write_text(json.dumps({"prompt": "Who?", "answer": "Ann."}) + "\n")
    with pytest.raises(InputError, match="no text to train a tokenizer on"):
        train_vocabulary(DEFAULT_MODEL, [tmp_path / "none.jsonl"], 600, tmp_path / "x")
    with pytest.raises(ModelError, match="neither a folder here nor could it be fetched"):
        train_vocabulary("./nothing", [tmp_path / "texts.jsonl"], 600, tmp_path / "x")

"""The tiny models and tokenizers that other tests rely on."""

import pytest
import torch
from tiny import FAMILIES, save_tiny, tiny_chat_tokenizer, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.mark.parametrize("mha", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_arguments_same_model(family, mha):
    model, twin, other = tiny_model(family, mha=mha), tiny_model(family, mha=mha), tiny_model(family, mha=mha, seed=1)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = model(ids).logits
        assert torch.equal(logits, twin(ids).logits)
        assert not torch.allclose(logits, other(ids).logits)
    assert logits.dtype == torch.float32
    assert logits.shape == (1, 4, len(tiny_tokenizer()))
    assert not model.training


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), tiny_chat_tokenizer()], ids=["plain", "chat"])
@pytest.mark.parametrize("text", ["", "The bridge was built in 1874.", " 東京 🙂\t\n  x", "\x00\x7f"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_special_tokens():
    assert tiny_tokenizer().encode("x")[0] == tiny_tokenizer().bos_token_id
    chat = tiny_chat_tokenizer()
    assert chat.encode("x") == chat.encode("x", add_special_tokens=False)
    text = chat.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "<s>user\nHi</s>\n<s>assistant\n"


def test_saved_model_loads_back(tmp_path):
    path = save_tiny(tmp_path, "qwen3", chat=True)
    loaded = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, tiny_model("qwen3")(ids).logits)
    assert AutoTokenizer.from_pretrained(path).chat_template

"""Linear layers with copies of their weights, against torch's own."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import tiny
import torch
from torch import nn

from memory3.models import prepacked
from memory3.models.active import changed_since_built, state_mark
from memory3.models.geometry import ModelGeometry
from memory3.models.prepacked import prepack
from memory3.onednn import packs
from memory3.onednn import prepacked as laid_out

pytestmark = pytest.mark.skipif(
    not packs(torch.float32), reason="this torch has no oneDNN, or an older one than prepacked weights need"
)


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers count, and copies win at every size."""
    monkeypatch.setattr(prepacked, "_SMALLEST", 1)
    monkeypatch.setattr(prepacked, "_timed", lambda layers: [True] * 3)


def _two() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 3, bias=False)).eval()


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each product that is taken with a copy."""
    rows: list[int] = []
    plain = prepacked._multiplied

    def multiplied(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows.append(x.numel() // x.shape[-1])
        return plain(x, packed, bias)

    monkeypatch.setattr(prepacked, "_multiplied", multiplied)
    return rows


@pytest.mark.parametrize("rows", [(1,), (2,), (5, 13), (2, 3, 17)])
def test_equals_torch(rows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model = _two()
    x = torch.randn(*rows, 7)
    with torch.no_grad():
        expected = model(x)
        assert prepack(model)
        used = _counted(monkeypatch)
        assert torch.allclose(model(x), expected, atol=1e-6)
        assert torch.allclose(model(x.transpose(0, -1).contiguous().transpose(0, -1)), expected, atol=1e-6)
    assert len(used) == 4
    assert not model(x[:0]).numel() if len(rows) > 1 else True


def test_bfloat16() -> None:
    if not packs(torch.bfloat16):
        pytest.skip("no bfloat16 in this oneDNN")
    model = _two().bfloat16()
    x = torch.randn(5, 7).bfloat16()
    with torch.no_grad():
        expected = model(x)
        assert prepack(model)
        assert torch.allclose(model(x), expected, atol=2e-2)
        assert torch.allclose(model.float()(x.float()), expected.float(), atol=2e-2)  # the copies are of other numbers


@pytest.mark.parametrize("how", ["in place", "one number", "past torch", "exchanged", "loaded", "a step"])
def test_a_copy_of_what_was_is_not_used(how: str) -> None:
    model = _two()
    other = _two()
    x = torch.randn(5, 7)
    assert prepack(model)
    layer, twin = model[2], other[2]
    for one in (layer, twin):
        new = one.weight.detach() * 2 + 1
        if how == "in place":
            with torch.no_grad():
                one.weight.copy_(new)
        elif how == "one number":
            with torch.no_grad():
                one.weight[1, 3] = 7
        elif how == "past torch":
            one.weight.data += new - one.weight.data
        elif how == "exchanged":
            one.weight.data = new
        elif how == "loaded":
            one.load_state_dict({"weight": new})
        else:
            one.weight.grad = -torch.ones_like(one.weight)
            torch.optim.SGD(one.parameters(), lr=0.5).step()
    with torch.no_grad():
        assert torch.allclose(model(x), other(x), atol=1e-6)


def test_gradients_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = _two(), _two()
    assert prepack(model)
    used = _counted(monkeypatch)
    x = torch.randn(5, 7)
    for one in (model, other):
        one(x).square().sum().backward()
    assert not used
    for mine, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine.grad, expected.grad)
    model.requires_grad_(requires_grad=False)
    y = x.clone().requires_grad_()
    model(y).sum().backward()  # of what goes in, with weights that learn nothing
    assert y.grad is not None
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).dtype == torch.bfloat16


def test_copies_of_the_model_stand_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _two()
    x = torch.randn(5, 7)
    assert prepack(model)
    used = _counted(monkeypatch)
    with torch.no_grad():
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            expected = model(x)
            used.clear()
            assert torch.allclose(twin(x), expected, atol=1e-6)
            assert not used
            twin[0].weight.zero_()
            assert torch.allclose(twin(x), twin[2](torch.relu(twin[0].bias)).expand(5, 3), atol=1e-6)
        model(x)
    assert used == [5, 5]


def test_a_model_stays_what_it_is() -> None:
    model, tokenizer = tiny.tiny_model("qwen2"), tiny.tiny_tokenizer()
    geometry = ModelGeometry(model)
    keys = list(model.state_dict())
    ids = torch.tensor([[3, 5, 7, 11, 2]])
    with torch.no_grad():
        expected = model(ids).logits
    assert prepack(model)
    assert list(model.state_dict()) == keys
    assert changed_since_built(model, geometry, geometry.num_layers - 1) == {}
    mark = state_mark(model, tokenizer)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, expected, atol=1e-5)
        assert torch.allclose(model.base_model(ids).last_hidden_state, model.base_model(ids).last_hidden_state)
    assert state_mark(model, tokenizer) == mark


def test_what_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(nn.Linear):
        pass

    assert not prepack(nn.Sequential(Mine(7, 11)))
    assert not prepack(nn.Sequential(nn.Conv1d(2, 3, 5)))
    assert not prepack(_two().double())
    assert not prepack(_two().to("meta"))
    monkeypatch.setattr(prepacked, "_machine_bytes", lambda: 4 * (7 * 11 + 11 * 3) * 4 - 1)
    assert not prepack(_two())
    monkeypatch.setattr(prepacked, "_machine_bytes", lambda: 4 * (7 * 11 + 11 * 3) * 4)
    assert prepack(_two())


def test_each_size_by_its_own_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "_timed", lambda layers: [False, True, False])
    model = _two()
    assert prepack(model)
    used = _counted(monkeypatch)
    with torch.no_grad():
        for rows in (1, 2, 32, 33):
            model(torch.randn(rows, 7))
    assert used == [2, 2, 32, 32]
    monkeypatch.setattr(prepacked, "_timed", lambda layers: [False] * 3)
    assert not prepack(_two())


def test_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not prepack(_two())  # too small to be worth it
    layers = [nn.Linear(256, 512) for _ in range(3)]
    found = prepacked._timed({layer: laid_out(layer.weight.detach()) for layer in layers})
    assert len(found) == 3
    assert set(found) <= {True, False}


def test_layers_of_both_dtypes_in_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(7, 11), nn.Linear(11, 3).bfloat16())
    monkeypatch.setattr(prepacked, "packs", lambda dtype: dtype == torch.float32)
    x = torch.randn(5, 7)
    assert prepack(model)
    used = _counted(monkeypatch)
    with torch.no_grad():
        model[1](model[0](x).bfloat16())
    assert used == [5]


def test_a_weight_is_written_while_others_multiply() -> None:
    """No thread meets a copy that another one has let go."""
    for seed in range(20):
        model, other = _two(), _two()
        assert prepack(model)
        x, failed = torch.randn(5, 7), list[BaseException]()

        def multiply(model: nn.Module = model, x: torch.Tensor = x, failed: list[BaseException] = failed) -> None:
            try:
                with torch.no_grad():
                    for _ in range(50):
                        model(x)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=multiply) for _ in range(3)]
        for thread in threads:
            thread.start()
        for one in (model, other):
            one[2].weight.data.fill_(seed + 1.0)
        for thread in threads:
            thread.join()
        assert not failed
        with torch.no_grad():
            assert torch.allclose(model(x), other(x), atol=1e-5)

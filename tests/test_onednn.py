"""oneDNN's products, against torch's."""

from __future__ import annotations

import pytest
import torch

from memory3 import onednn

pytestmark = pytest.mark.skipif(onednn.linear() is None, reason="this torch has no oneDNN product")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 13])
def test_equals_torch(dtype: torch.dtype, rows: int) -> None:
    if not onednn.packs(dtype):
        pytest.skip(f"oneDNN packs no {dtype} here")
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, 7).to(dtype), torch.randn(11, 7).to(dtype), torch.randn(11).to(dtype)
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    fast = onednn.linear()
    assert fast is not None
    for one in (weight, onednn.prepacked(weight)) if dtype == torch.float32 else (onednn.prepacked(weight),):
        assert torch.allclose(fast(x, one, bias).double(), expected, atol=1e-5 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("wrong", [RuntimeError("no such kernel"), AttributeError("no such name")])
def test_what_fails_is_not_used(wrong: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> torch.Tensor:
        raise wrong

    monkeypatch.setattr(onednn, "_linear", fails)
    assert not onednn._works(torch.float32, onednn.prepacked)
    monkeypatch.setattr(onednn, "_linear", lambda x, weight, bias: x[:, :2] * 0)
    assert not onednn._works(torch.float32, lambda weight: weight)  # wrong numbers, too

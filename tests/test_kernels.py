"""Each attention kernel beside the reference kernel, and the reference beside finite differences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import aten_cuda
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from twins import attend_concatenated, moved, random_layer

from memory3 import benchmarks
from memory3.attention import kernels
from memory3.attention.attend import attend, attention_with_lse
from memory3.attention.kernels import CPU, EFFICIENT, FLASH, REFERENCE, Kernel, choose, masked
from memory3.errors import ConfigError

ROWS, HEADS, KV_HEADS, DIM, SCALE = 3, 10, 2, 24, 0.3  # groups of 5


class Case(NamedTuple):
    """``bias``: which of the sizes of `make_bias`; None: there is none."""

    tokens: int
    keys: int
    bias: str | None
    causal: bool = False


CASES = {
    "causal": Case(7, 7, None, causal=True),
    "one token": Case(1, 11, None),
    "memory without padding": Case(7, 11, None),
    "ragged heads": Case(7, 11, "heads"),
    "one token, ragged heads": Case(1, 11, "heads"),
    "padded rows": Case(7, 11, "rows"),
    "one token, padded rows": Case(1, 11, "rows"),
    "the same mask for all": Case(33, 37, "all"),  # the lse is padded to 64
    "aligned bias": Case(7, 16, "rows"),
    "aligned, but shifted": Case(7, 16, "slice"),
}


def make_bias(case: Case, dtype: torch.dtype) -> torch.Tensor | None:
    """What is hidden is the far end, of a different length in each row and head; no row is hidden whole."""
    g = torch.Generator().manual_seed(8)
    sizes = {"heads": (ROWS, KV_HEADS, 1), "rows": (ROWS, 1, case.tokens), "all": (1, 1, case.tokens)}
    if case.bias is None:
        return None
    if case.bias == "slice":
        return make_bias(case._replace(bias="rows", keys=case.keys + 3), dtype)[..., 3:]  # type: ignore[index]
    size = sizes[case.bias]
    hidden = torch.arange(case.keys) >= torch.randint(4, case.keys + 1, (*size, 1), generator=g)
    soft = torch.randn(*size, case.keys, generator=g)
    return soft.masked_fill(hidden, masked(dtype)).to(dtype)


def make_inputs(case: Case, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query as transformers gives it, a view of ``[B, T, A, d]``; keys and values likewise, or a slice of a larger buffer."""
    g = torch.Generator().manual_seed(9)
    query = torch.randn(ROWS, case.tokens, HEADS, DIM, generator=g).to(dtype).transpose(1, 2)
    key = torch.randn(ROWS, case.keys, KV_HEADS, DIM, generator=g).to(dtype).transpose(1, 2)
    value = torch.randn(ROWS, KV_HEADS, case.keys + 13, DIM, generator=g).to(dtype)[:, :, 8 : 8 + case.keys]
    return [query, key, value]


def outcome(
    kernel: Kernel,
    case: Case,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    *,
    device: str = "cpu",
    computed: torch.dtype | None = None,
) -> list[torch.Tensor]:
    """Output, lse and the gradients of a sum of both with respect to query, key and value: float32, on the CPU.

    ``dtype``: what the numbers are rounded to; ``computed``: what they are then computed in, the same unless it is given.
    """
    computed = computed or dtype
    if device == "cpu":  # CUDA's, too, while stand-ins compute them
        kernel = replace(kernel, serves=lambda *_: True)
    monkeypatch.setattr(kernels, "KERNELS", (kernel,))
    inputs, bias = [x.to(device, computed).detach().requires_grad_() for x in make_inputs(case, dtype)], make_bias(case, dtype)
    bias = None if bias is None else bias.to(device, computed)
    out, lse = attention_with_lse(*inputs, bias, causal=case.causal, scale=SCALE)
    assert out.dtype == computed
    assert lse.dtype == torch.float32
    g = torch.Generator().manual_seed(10)
    wanted = torch.randn(out.shape, generator=g).to(dtype).to(device, computed)
    of_lse = torch.randn(lse.shape, generator=g).to(device)
    gradients = torch.autograd.grad((out * wanted).float().sum() + (lse * of_lse).sum(), inputs)
    with torch.no_grad():  # another path in most kernels
        again = attention_with_lse(*inputs, bias, causal=case.causal, scale=SCALE)
    for a, b in zip((out, lse), again, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=0, atol=0)
    return [x.detach().float().cpu() for x in (out, lse, *gradients)]


def exact(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the reference says, in float32, of the numbers that ``dtype`` can hold."""
    return outcome(REFERENCE, case, dtype, monkeypatch, computed=torch.float32)


def test_the_reference_has_the_right_gradients() -> None:
    """Of the output and of its lse, against finite differences."""
    g = torch.Generator().manual_seed(6)
    shapes = ((2, 6, 5, 7), (2, 3, 5, 7), (2, 3, 5, 7))
    inputs = [torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True) for shape in shapes]
    for bias in (None, torch.randn(2, 1, 5, 5, generator=g, dtype=torch.float64)):
        for causal in (False, True):
            assert torch.autograd.gradcheck(lambda q, k, v, b=bias, c=causal: REFERENCE.attention(q, k, v, b, c, 0.3), inputs)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_cpus_kernel_equals_the_reference(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (outcome(kernel, case, torch.float32, monkeypatch) for kernel in (CPU, REFERENCE))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# ---- CUDA without a GPU: how its kernels are called ------------------------------------------------------------------


@pytest.fixture(scope="module")
def _stand_ins() -> Iterator[None]:
    with aten_cuda.on_the_cpu():
        yield


ARMS = [(FLASH, torch.bfloat16), (EFFICIENT, torch.float32), (EFFICIENT, torch.bfloat16), (EFFICIENT, torch.float16)]


def pairs(arms: list[tuple[Kernel, torch.dtype]]) -> list[object]:
    """Each case of each arm that takes it: flash takes no bias."""
    return [
        pytest.param(kernel, dtype, case, id=f"{kernel.name} {dtype}, {name}")
        for kernel, dtype in arms
        for name, case in CASES.items()
        if case.bias is None or kernel is not FLASH
    ]


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize(("kernel", "dtype", "case"), pairs(ARMS))
def test_cudas_kernels_are_called_as_aten_wants_it(
    kernel: Kernel, dtype: torch.dtype, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins refuse what ATen refuses and compute what it documents: heads, bias, lse and gradients come out where
    they belong.
    """
    aten_cuda.CALLS.clear()
    ours, theirs = outcome(kernel, case, dtype, monkeypatch), exact(case, dtype, monkeypatch)
    name = "flash" if kernel is FLASH else "efficient"
    assert [name, f"{name} backward", name] == aten_cuda.CALLS
    close(ours, theirs, dtype)


def close(ours: list[torch.Tensor], theirs: list[torch.Tensor], dtype: torch.dtype) -> None:
    """float32: to 1e-5. Half precision cannot hold more than its own numbers: 1e-3 on average of the output, one rounding
    at most; gradients round thrice.
    """
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if dtype == torch.float32:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 if number < 2 else 3e-5)
        else:
            size = float(b.abs().mean())
            assert float((a - b).abs().mean()) <= (1e-3 if number < 2 else 8e-3) * max(1.0, size)
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 if number < 2 else 0.06)


@pytest.mark.parametrize(("kernel", "dtype", "case"), pairs(ARMS))
def test_cudas_kernels_give_the_shapes_that_aten_says(kernel: Kernel, dtype: torch.dtype, case: Case) -> None:
    """By ATen's own shape functions, on the meta device, forwards and backwards."""
    inputs, bias = [x.to("meta").requires_grad_() for x in make_inputs(case, dtype)], make_bias(case, dtype)
    if bias is not None:
        bias = bias.to("meta")
        if bias.shape[1] == KV_HEADS:
            bias = bias.repeat_interleave(HEADS // KV_HEADS, dim=1)
    out, lse = kernel.attention(*inputs, bias, case.causal, SCALE)
    assert (out.shape, out.dtype) == (inputs[0].shape, dtype)
    assert (lse.shape, lse.dtype) == (inputs[0].shape[:3], torch.float32)
    found = torch.autograd.grad(out.float().sum() + lse.sum(), inputs)
    assert [x.shape for x in found] == [x.shape for x in inputs]


def fake(*shape: int, dtype: torch.dtype, device: str = "cuda") -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("dtype", "dim", "biased", "expected"),
    [
        (torch.bfloat16, 24, False, FLASH),
        (torch.float16, 24, False, FLASH),
        (torch.bfloat16, 24, True, EFFICIENT),
        (torch.float32, 24, False, EFFICIENT),
        (torch.float32, 28, True, EFFICIENT),
        (torch.bfloat16, 28, False, REFERENCE),  # 8 does not divide it
        (torch.float32, 10, False, REFERENCE),
        (torch.float64, 24, False, REFERENCE),
    ],
)
def test_who_serves_on_cuda(
    dtype: torch.dtype, dim: int, biased: bool, expected: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a fake device: torch is asked, and says what it would on a GPU that has both kernels."""
    cuda = torch.backends.cuda
    half = (torch.float16, torch.bfloat16)
    monkeypatch.setattr(cuda, "can_use_flash_attention", lambda p, debug=False: p.query.dtype in half)
    monkeypatch.setattr(cuda, "can_use_efficient_attention", lambda p, debug=False: p.query.dtype in (*half, torch.float32))
    with FakeTensorMode():
        query, key = fake(3, 10, 7, dim, dtype=dtype), fake(3, 2, 11, dim, dtype=dtype)
        bias = fake(3, 1, 7, 11, dtype=dtype) if biased else None
        assert choose(query, key, key, bias).name == expected.name
        out, lse = attention_with_lse(query, key, key, bias, scale=0.3)
    assert (out.device.type, out.shape, out.dtype) == ("cuda", query.shape, dtype)
    assert (lse.shape, lse.dtype) == ((3, 10, 7), torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_vectors_whose_numbers_do_not_lie_side_by_side(which: int) -> None:
    inputs = make_inputs(CASES["memory without padding"], torch.float32)
    expected = CPU.attention(*inputs, None, False, SCALE)
    inputs[which] = inputs[which].transpose(-1, -2).contiguous().transpose(-1, -2)
    assert inputs[which].stride(-1) != 1
    for found, wanted in zip(CPU.attention(*inputs, None, False, SCALE), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_who_serves_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        query = torch.zeros(1, 2, 3, 5, dtype=dtype)
        assert choose(query, query, query).name == "cpu"
    with FakeTensorMode():
        for device in ("mps", "xpu"):
            query = fake(1, 2, 3, 8, dtype=torch.float16, device=device)
            assert choose(query, query, query).name == "reference"
        query = fake(1, 2, 3, 8, dtype=torch.float16)
        assert choose(query, query, query).name == "reference", "torch says that this machine has no GPU"


# ---- CUDA with a GPU -------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(("kernel", "dtype", "case"), pairs(ARMS))
def test_cudas_kernels_equal_the_reference(
    kernel: Kernel, dtype: torch.dtype, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(outcome(kernel, case, dtype, monkeypatch, device="cuda"), exact(case, dtype, monkeypatch), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_merge_on_cuda_equals_concatenation(padded: bool, dtype: torch.dtype, tolerance: float) -> None:
    """Chunks of unequal length, tokens in none, ragged heads, by whichever kernels are chosen."""
    g = torch.Generator().manual_seed(1)
    table = torch.tensor([[1, 2, 3], [4, 5, -1], [15, 16, 17], [18, -1, -1], [30, 31, 32]])
    query = torch.randn(3, HEADS, 11, DIM, generator=g).to(dtype)
    key, value = (torch.randn(3, KV_HEADS, 11, DIM, generator=g).to(dtype) for _ in range(2))
    memory = random_layer(5, KV_HEADS, 7, padded=padded, dim=DIM, dtype=dtype)
    slow = attend_concatenated(
        *(x.float() for x in (query, key, value)), None, moved(memory, torch.float32), table, causal=True, scale=SCALE
    )
    fast = attend(
        *(x.cuda() for x in (query, key, value)), None, moved(memory, "cuda"), table.cuda(), causal=True, scale=SCALE
    )
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a.float().cpu(), b, rtol=tolerance, atol=tolerance)


# ---- speed -----------------------------------------------------------------------------------------------------------


def test_kernels_are_timed_beside_torchs_own() -> None:
    options = {"device": "cpu", "dtype": "float32", "batch": "2", "tokens": "70", "pairs": "11", "repeats": "1"}
    found = benchmarks.run("kernels", options)
    for way in ("prompt", "decode", "decode_ragged", "chunks_ragged"):
        assert found[way]["chosen"] == "cpu"
        assert {"cpu", "reference"} < found[way].keys()
        assert found[way]["cpu"]["ratio"] > 0
    with pytest.raises(ConfigError, match="heads must be a multiple"):
        benchmarks.run("kernels", {"heads": "4"})

"""A row beyond whole blocks is multiplied apart where that pays; what comes out is that of any linear map."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from densevlm_mm.vlm.towers import cpu_bfloat16, rows_apart
from densevlm_mm.vlm.towers.rows_apart import RowsApartLinear, set_rows_apart

OPERATOR = 'densevlm_mm::product'


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch) -> None:
    monkeypatch.setattr(rows_apart, '_MIN_WEIGHTS', 0)


@pytest.fixture(autouse=True)
def cpu_multiplies_bfloat16(monkeypatch) -> None:
    monkeypatch.setattr(cpu_bfloat16, 'CPU_MULTIPLIES_BFLOAT16', True)


def pair(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """A linear map, and its copy that multiplies a row apart."""
    plain = nn.Linear(24, 40, bias=bias)
    apart = copy.deepcopy(plain)
    set_rows_apart(apart)
    return plain, apart


def run(linear: nn.Linear, x: Tensor, *, compiled: bool = True, dtype: torch.dtype = torch.bfloat16) -> tuple:
    """Output and gradients, and whether a row was multiplied apart."""
    torch._dynamo.reset()
    function = torch.compile(linear.forward, backend='aot_eager', fullgraph=True) if compiled else linear.forward
    inputs = [tensor for tensor in (x, *linear.parameters()) if tensor.requires_grad]
    with torch.autograd.profiler.profile() as profile:
        with torch.autocast('cpu', dtype=dtype, enabled=dtype != torch.float32):
            y = function(x)
        gradients = torch.autograd.grad(y.float().square().mean(), inputs) if y.requires_grad else ()
    return y, gradients, any(event.name == OPERATOR for event in profile.function_events)


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, 24, requires_grad=True)


@pytest.mark.parametrize('shape', [(1, 65), (3, 43), (193,)])
@pytest.mark.parametrize('bias', [True, False])
def test_results_and_gradients_are_those_of_a_linear_map(bias, shape):
    plain, apart = pair(bias)
    x = tokens(*shape)
    y, gradients, is_apart = run(apart, x)
    assert is_apart
    expected, expected_gradients, _ = run(plain, x)
    assert y.dtype == torch.bfloat16
    assert [g.dtype for g in gradients] == [torch.float32] * (3 if bias else 2)
    for ours, theirs in zip((y, *gradients), (expected, *expected_gradients), strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() <= 1e-2 * theirs.norm()


def test_the_gradient_of_the_weight_is_no_further_from_that_in_fp32():
    plain, apart = pair()
    x = tokens(65)
    exact, rounded, ours = (
        run(linear, x, dtype=dtype)[1][1]
        for linear, dtype in ((plain, torch.float32), (plain, torch.bfloat16), (apart, torch.bfloat16))
    )
    assert (ours - exact).norm() <= 1.05 * (rounded - exact).norm()


@pytest.mark.parametrize(
    'change',
    [
        dict(compiled=False),
        dict(dtype=torch.float32),
        dict(dtype=torch.float16),
        dict(shape=(64,)),
        dict(shape=(66,)),
        dict(shape=(1,)),
        dict(frozen=True),
        dict(grad=False),
    ],
    ids=str,
)
def test_elsewhere_it_is_a_linear_map(change):
    change = dict(change)
    plain, apart = pair()
    x = tokens(*change.pop('shape', (65,)))
    if change.pop('frozen', False):
        plain.requires_grad_(False), apart.requires_grad_(False)
    with torch.set_grad_enabled(change.pop('grad', True)):
        y, gradients, is_apart = run(apart, x, **change)
        expected, expected_gradients, _ = run(plain, x, **change)
    assert not is_apart
    for ours, theirs in zip((y, *gradients), (expected, *expected_gradients), strict=True):
        assert torch.equal(ours, theirs)


def test_only_large_plain_maps_change(monkeypatch):
    class Other(nn.Linear):
        pass

    monkeypatch.setattr(rows_apart, '_MIN_WEIGHTS', 100)
    module = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 11), Other(20, 20))
    set_rows_apart(module)
    assert [type(linear) for linear in module] == [nn.Linear, RowsApartLinear, Other]


def test_no_map_changes_where_bfloat16_is_slow(monkeypatch):
    monkeypatch.setattr(cpu_bfloat16, 'CPU_MULTIPLIES_BFLOAT16', False)
    plain, apart = pair()
    assert type(apart) is type(plain) is nn.Linear


def test_other_sizes_need_no_other_code():
    apart = pair()[1]
    torch._dynamo.reset()
    compiled = torch.compile(apart.forward, backend='aot_eager', fullgraph=True)
    frames = torch._dynamo.utils.counters['stats']
    before = frames['unique_graphs']
    for rows in (65, 129, 66, 70, 193, 257, 80, 321, 64, 128, 385):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            compiled(tokens(rows)).float().sum().backward()
    # of the first size, and of any with and without a row beyond the blocks
    assert frames['unique_graphs'] - before <= 4

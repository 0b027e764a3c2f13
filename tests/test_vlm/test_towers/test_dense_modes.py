"""The dense modes of the towers, against the reference's numbers and against plain formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from densevlm_mm.vlm.towers.self_correlation import SELF_CORRELATIONS, self_correlation

EVA_MODES = {'vanilla': 'vanilla', 'value': 'maskclip', **{mode: mode for mode in SELF_CORRELATIONS}}


@pytest.mark.parity
@pytest.mark.parametrize('size', ['48x48', '64x64', '96x96'])
@pytest.mark.parametrize('mode', EVA_MODES)
def test_eva_modes_are_the_references(tiny_vlm, read_npz, mode: str, size: str) -> None:
    images = read_npz('eva_tiny')[f'{size}/image']
    expected = read_npz('eva_tiny_dense_modes')[f'{size}/{EVA_MODES[mode]}']
    with torch.no_grad():
        dense = tiny_vlm('eva', dense_mode=mode).encode_dense(images, normalize=False)
    assert (dense - expected).norm() < 2e-6 * expected.norm()


def plain_attention(features: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    return (scale * features @ features.transpose(-2, -1)).softmax(-1) @ values


def test_self_correlation_is_the_plain_formula() -> None:
    heads = {name: torch.randn(2, 3, 7, 4) for name in 'qkv'}
    q, k, v = heads.values()
    expected = plain_attention(q, v, 0.5) + plain_attention(k, v, 0.5)
    torch.testing.assert_close(self_correlation(heads, ('q', 'k'), scale=0.5), expected)
    mean = sum(x @ x.transpose(-2, -1) for x in (q, k, v)) / 3
    torch.testing.assert_close(self_correlation(heads, ('qkv',), scale=1.0), mean.softmax(-1) @ v)


@pytest.mark.parametrize('mode', ['clearclip', 'sclip'])
def test_openai_modes_are_their_definitions(tiny_vlm, mode: str) -> None:
    vlm = tiny_vlm('openai', dense_mode=mode)
    tower, block = vlm.visual, vlm.visual.blocks[-1]
    images = torch.randn(2, 3, 48, 32)
    with torch.no_grad():
        tokens = tower.run(images, depth=len(tower.blocks) - 1).state
        attention = block.attn
        projected = F.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in projected.chunk(3, -1))
        scale = q.shape[-1] ** -0.5
        mixed = plain_attention(q, v, scale)
        if mode == 'sclip':
            mixed = mixed + plain_attention(k, v, scale)
        mixed = attention.out_proj(mixed.transpose(1, 2).flatten(2))
        if mode == 'sclip':
            tokens = tokens + mixed
            mixed = tokens + block.mlp(block.ln_2(tokens))
        expected = tower.project(mixed[:, 1:]).transpose(1, 2).unflatten(2, (6, 4))
        torch.testing.assert_close(vlm.encode_dense(images, normalize=False), expected)


@pytest.mark.parametrize(
    ('family', 'mode'),
    [*(('eva', mode) for mode in EVA_MODES), *(('openai', m) for m in ('vanilla', 'value', 'clearclip', 'sclip'))],
)
def test_what_trains_in_a_mode_is_what_it_uses(tiny_vlm, family: str, mode: str) -> None:
    tower = tiny_vlm(family).visual
    tower.set_trainable(2, mode)
    tower.encode_dense(torch.randn(1, 3, 64, 64), mode).square().sum().backward()
    without = [name for name, p in tower.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert any(p.grad is not None for p in tower.blocks[-1].parameters())


@pytest.mark.parametrize(('family', 'mode'), [('eva', 'sclip'), ('openai', 'csa'), ('eva', 'nonsense')])
def test_a_mode_of_another_family_is_refused(tiny_vlm, family: str, mode: str) -> None:
    with pytest.raises(ValueError, match=rf'no dense mode {mode!r}; it defines'):
        tiny_vlm(family, dense_mode=mode)

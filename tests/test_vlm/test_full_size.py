"""The two released models at their real size, with random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from densevlm_mm.vlm import VLM, load_vlm

# our name inside a block -> EVA-CLIP's
REFERENCE_NAMES = {
    'attn.q_proj.bias': 'attn.q_bias',
    'attn.v_proj.bias': 'attn.v_bias',
    'attn.norm.': 'attn.inner_attn_ln.',
    'mlp.fc1_g.': 'mlp.w1.',
    'mlp.fc1_x.': 'mlp.w2.',
    'mlp.fc2.': 'mlp.w3.',
    'mlp.norm.': 'mlp.ffn_ln.',
}


def reference_name(key: str) -> str:
    key = key.replace('visual.trunk.', 'visual.')
    for ours, theirs in REFERENCE_NAMES.items():
        key = key.replace(ours, theirs)
    return key


def count(keys, prefix: str) -> int:
    return sum(key.startswith(prefix) for key in keys)


@pytest.fixture(scope='module')
def shapes() -> dict[str, torch.Size]:
    """Our names of EVA02-CLIP-B-16 and their shapes."""
    with torch.device('meta'):
        return {key: value.shape for key, value in VLM('EVA02-CLIP-B-16').state_dict().items()}


@pytest.fixture(scope='module')
def reference_state(shapes) -> dict[str, Tensor]:
    """What a released file holds: half precision, the reference's names, the rotary table of every block."""
    generator = torch.Generator().manual_seed(0)
    state = {
        reference_name(key): torch.empty(shape).normal_(std=0.02, generator=generator).half()
        for key, shape in shapes.items()
    }
    owners = ['visual.rope', *(f'visual.blocks.{i}.attn.rope' for i in range(12))]
    rope = {f'{owner}.freqs_{part}': torch.zeros(196, 64).half() for owner in owners for part in ('cos', 'sin')}
    return state | rope


def test_base_has_the_keys_of_the_reference(shapes, reference_state):
    assert len(shapes) == 410
    assert (count(shapes, 'visual.'), count(shapes, 'text.')) == (260, 149)
    assert len(reference_state) == 436
    assert count(reference_state, 'visual.') == 260 + 26
    assert set(reference_state) >= {
        'visual.cls_token', 'visual.blocks.11.attn.q_bias', 'visual.blocks.0.mlp.w3.weight', 'visual.head.bias',
        'visual.blocks.0.attn.inner_attn_ln.weight', 'visual.rope.freqs_cos', 'visual.blocks.11.attn.rope.freqs_sin',
        'text.text_projection', 'text.transformer.resblocks.11.attn.in_proj_weight', 'logit_scale',
    }  # fmt: skip


def test_base_has_the_size_of_the_reference(shapes):
    visual = sum(shape.numel() for key, shape in shapes.items() if key.startswith('visual.'))
    total = sum(shape.numel() for shape in shapes.values())
    assert total == 149_691_137
    assert visual == 86_263_040


@pytest.mark.slow
def test_base_loads_a_released_file_and_runs_at_512_px(tmp_path, shapes, reference_state):
    file = tmp_path / 'densevlm_vitb16.pt'
    torch.save({'epoch': 6, 'name': 'densevlm', 'state_dict': reference_state}, file)
    vlm = load_vlm('EVA02-CLIP-B-16', file)
    for key, value in vlm.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, reference_state[reference_name(key)].float())
    with torch.no_grad():
        dense = vlm.encode_dense(torch.randn(1, 3, 512, 512))
    assert dense.shape == (1, 512, 32, 32)
    torch.testing.assert_close(dense.norm(dim=1), torch.ones(1, 32, 32))


def test_large_has_the_size_and_grid_of_the_reference():
    """512 px are 36 patches of 14 px and a rest of 8 px that nobody sees."""
    with torch.device('meta'):
        vlm = load_vlm('EVA02-CLIP-L-14-336', device='meta')
        dense = vlm.encode_dense(torch.empty(1, 3, 512, 512))
    assert sum(p.numel() for p in vlm.parameters()) / 1e6 == pytest.approx(428.08, abs=0.005)
    assert sum(p.numel() for p in vlm.visual.parameters()) / 1e6 == pytest.approx(304.43, abs=0.005)
    assert dense.shape == (1, 768, 36, 36)
    assert vlm.visual.image_size == (336, 336)
    assert len(vlm.visual.blocks) == 24

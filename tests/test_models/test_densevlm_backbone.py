"""The backbone against the towers it wraps, and what its options promise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from densevlm_mm.models import DenseVLMBackbone
from densevlm_mm.models.backbones.densevlm_backbone import resize_to_stride
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import load_vlm

PARITY = Path(__file__).parents[1] / 'data' / 'parity'
FAMILIES = ('eva', 'openai')
LEVELS = {'eva': (0, 1, 2, 3), 'openai': (0, 1, 1, 2)}
STRIDES = (4, 8, 16, 32)


def make_arch(family: str, **vision: object) -> dict:
    """A tiny model config: EVA has 4 blocks of width 96 and patch 16, OpenAI 3 of width 64 and patch 8."""
    config = json.loads((PARITY / f'{family}_tiny.json').read_text())
    arch = {key: config[key] for key in ('embed_dim', 'vision_cfg', 'text_cfg', 'quick_gelu')}
    return {**arch, 'vision_cfg': {**arch['vision_cfg'], **vision}}


def make_backbone(family: str = 'eva', **options: object) -> DenseVLMBackbone:
    options = {'arch': make_arch(family), 'out_indices': LEVELS[family], **options}
    return MODELS.build({'type': 'densevlm_mm.DenseVLMBackbone', **options})


def checkpoint(family: str) -> str:
    return str(PARITY / f'{family}_tiny.pt')


def trained_blocks(backbone: DenseVLMBackbone) -> list[int]:
    blocks = backbone.tower.blocks
    return [i for i, block in enumerate(blocks) if any(p.requires_grad for p in block.parameters())]


def trained(backbone: DenseVLMBackbone) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def backward(backbone: DenseVLMBackbone) -> set[str]:
    """Names of the parameters that a backward pass from every output reaches."""
    loss = sum(output.square().mean() for output in backbone(torch.randn(2, 3, 48, 64)))
    if loss.requires_grad:
        loss.backward()
    return {name for name, parameter in backbone.named_parameters() if parameter.grad is not None}


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('size', [(64, 64), (96, 48), (48, 128), (33, 70), (100, 97)])
def test_levels_have_the_shapes_of_a_convolutional_pyramid(family, size):
    backbone = make_backbone(family)
    channels = backbone.out_channels
    maps = backbone(torch.randn(2, 3, *size))
    assert [m.shape[1] for m in maps] == channels == [backbone.tower.width] * 4
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(math.ceil(n / s) for n in size) for s in STRIDES]


@pytest.mark.parametrize('size', [(64, 64), (70, 98), (96, 50)])
def test_levels_of_a_patch_that_divides_nothing(size):
    backbone = make_backbone(arch=make_arch('eva', patch_size=14, image_size=56))
    maps = backbone(torch.randn(1, 3, *size))
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(math.ceil(n / s) for n in size) for s in STRIDES]


@pytest.mark.parametrize(('family', 'patch'), [('eva', 16), ('openai', 8)])
def test_token_grid_without_strides(family, patch):
    backbone = make_backbone(family, out_indices=(-1, 0), strides=None)
    assert [m.shape for m in backbone(torch.randn(1, 3, 50, 70))] == [
        (1, backbone.tower.width, 50 // patch, 70 // patch)
    ] * 2


def test_strides_double_by_default():
    assert make_backbone(out_indices=(1, 3)).strides == (4, 8)
    assert make_backbone(out_indices=(0, 1, 2, 3)).strides == STRIDES


def test_levels_are_the_token_grid_resampled():
    grid = make_backbone(checkpoint=checkpoint('eva'), strides=None)
    pyramid = make_backbone(checkpoint=checkpoint('eva'))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, levels = grid(images), pyramid(images)
    assert torch.equal(levels[2], expected[2])
    for stride, level, tokens in zip(STRIDES, levels, expected, strict=True):
        resized = F.interpolate(tokens, (64 // stride, 96 // stride), mode='bilinear', align_corners=False)
        torch.testing.assert_close(level, resized)


# ---------------------------------------------------------------- convolutional towers


CONVOLUTIONS = {
    'resnet': ({'image_size': 64, 'width': 8, 'layers': [1, 1, 1, 1], 'head_width': 32}, [32, 64, 128, 256]),
    'convnext': ({'timm_model_name': 'test_convnext', 'timm_pool': '', 'image_size': 64}, [24, 32, 48, 64]),
}


def make_convolutional(family: str, **options: object) -> DenseVLMBackbone:
    arch = {**make_arch('openai'), 'vision_cfg': CONVOLUTIONS[family][0]}
    return make_backbone(arch=arch, **{'out_indices': (0, 1, 2, 3), **options})


@pytest.mark.parametrize('family', CONVOLUTIONS)
@pytest.mark.parametrize('size', [(64, 96), (100, 97)])
def test_stages_are_the_pyramid(family, size):
    backbone = make_convolutional(family, with_dense=True)
    *levels, dense = backbone(torch.randn(2, 3, *size))
    assert backbone.out_channels == [*CONVOLUTIONS[family][1], 48] == [m.shape[1] for m in (*levels, dense)]
    assert [tuple(m.shape[2:]) for m in levels] == [tuple(math.ceil(n / s) for n in size) for s in STRIDES]
    assert tuple(dense.shape[2:]) == (size[0] // 32, size[1] // 32)


@pytest.mark.parametrize('family', CONVOLUTIONS)
def test_stages_at_their_own_stride_are_left_alone(family):
    backbone = make_convolutional(family).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        levels, stages = backbone(images), backbone.tower.run(images, indices=range(4)).maps
    assert all(torch.equal(level, stage) for level, stage in zip(levels, stages, strict=True))


def test_a_stage_can_be_resized():
    backbone = make_convolutional('resnet', out_indices=(3, 1), strides=(16, 16))
    assert backbone.out_channels == [256, 64]
    assert [m.shape for m in backbone(torch.randn(1, 3, 64, 96))] == [(1, 256, 4, 6), (1, 64, 4, 6)]


@pytest.mark.parametrize('family', CONVOLUTIONS)
@pytest.mark.parametrize(('options', 'expected'), [
    ({'trainable': 2}, [2, 3]),
    ({'frozen_stages': 1}, [1, 2, 3]),
    ({'frozen_stages': -1}, [0, 1, 2, 3]),
    ({'out_indices': (0, 1), 'trainable': 1}, [1]),
])  # fmt: skip
def test_which_stages_train(family, options, expected):
    backbone = make_convolutional(family, **options).train()
    assert trained_blocks(backbone) == expected
    assert backward(backbone) == trained(backbone)
    assert any('stem' in name or 'trunk.conv' in name for name in trained(backbone)) == (-1 in options.values())


# ---------------------------------------------------------------- alignment


@given(
    patch=st.sampled_from([8, 14, 16, 32]),
    stride=st.sampled_from([4, 7, 8, 12, 14, 16, 32]),
    tokens=st.integers(3, 12),
    spare=st.integers(0, 31),
)
def test_cells_stay_on_their_pixels(patch: int, stride: int, tokens: int, spare: int):
    """A map that holds each token's own centre in pixels keeps holding pixel positions after resampling."""
    centres = (torch.arange(tokens) + 0.5) * patch
    pixels = tokens * patch + min(spare, patch - 1)
    level = resize_to_stride(centres.expand(1, 1, tokens, tokens), stride, (patch, patch), (tokens * patch, pixels))
    cells = (torch.arange(math.ceil(pixels / stride)) + 0.5) * stride
    expected = cells.clamp(centres[0], centres[-1])
    torch.testing.assert_close(level, expected.expand_as(level))


@given(
    patch=st.sampled_from([8, 14, 16]),
    stride=st.sampled_from([3, 4, 7, 12, 16, 32]),
    height=st.integers(16, 99),
)
def test_constant_map_stays_constant(patch: int, stride: int, height: int):
    tokens = torch.full((1, 1, height // patch, 3), 7.0)
    level = resize_to_stride(tokens, stride, (patch, patch), (height, 3 * patch))
    assert level.shape == (1, 1, math.ceil(height / stride), math.ceil(3 * patch / stride))
    torch.testing.assert_close(level, torch.full_like(level, 7.0))


# ---------------------------------------------------------------- values


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('mode', ['value', 'vanilla'])
def test_dense_map_is_that_of_the_vlm(family, mode):
    backbone = make_backbone(family, checkpoint=checkpoint(family), dense_mode=mode, with_dense=True)
    vlm = load_vlm(make_arch(family), checkpoint(family), dense_mode=mode)
    images = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        *levels, dense = backbone(images)
        expected = vlm.encode_dense(images)
    assert torch.equal(dense, expected)
    assert [m.shape[1] for m in (*levels, dense)] == backbone.out_channels
    assert backbone.out_channels[-1] == vlm.embed_dim


@pytest.mark.parametrize('strides', [None, STRIDES])
@pytest.mark.parametrize('family', FAMILIES)
def test_channels_come_first_in_memory(family, strides):
    """mmcv's RoIAlign takes that for granted, and reads any other tensor wrongly without a word."""
    with torch.no_grad():
        outputs = make_backbone(family, strides=strides, with_dense=True)(torch.randn(2, 3, 48, 64))
    assert [output.is_contiguous() for output in outputs] == [True] * 5


def test_dense_map_alone():
    backbone = make_backbone(checkpoint=checkpoint('eva'), out_indices=(), strides=None, with_dense=True)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        (dense,) = backbone(images)
        expected = load_vlm(make_arch('eva'), checkpoint('eva')).encode_dense(images)
    assert torch.equal(dense, expected)
    assert backbone.out_channels == [48]


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('indices', [(0, 1, 2), (2, 0), (1, 1), (-1, -3)])
def test_levels_are_the_blocks_of_the_vlm(family, indices):
    options = {'checkpoint': checkpoint(family), 'out_indices': indices, 'strides': None}
    backbone = make_backbone(family, dense_mode='vanilla', **options)
    images = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        levels = backbone(images)
        expected = load_vlm(make_arch(family), checkpoint(family)).encode_blocks(images, indices)
    assert len(levels) == len(indices)
    assert all(torch.equal(level, block) for level, block in zip(levels, expected, strict=True))


@pytest.mark.parity
@pytest.mark.parametrize('size', ['48x48', '64x64', '96x96'])
def test_levels_follow_the_value_path_of_the_last_block_only(size):
    images = torch.from_numpy(np.load(PARITY / 'eva_tiny.npz')[f'{size}/image'])
    reference = np.load(PARITY / 'eva_tiny_blocks.npz')
    backbone = make_backbone(checkpoint=checkpoint('eva'), strides=None)
    with torch.no_grad():
        levels = backbone(images)
    names = ('block0', 'block1', 'block2', 'block3_value')
    for level, name in zip(levels, names, strict=True):
        expected = reference[f'{size}/{name}']
        # by the norm: single values near zero carry the rounding of large ones
        assert np.linalg.norm(level.numpy() - expected) <= 2e-6 * np.linalg.norm(expected)


def test_blocks_beyond_the_last_output_do_not_run():
    backbone = make_backbone(out_indices=(0, 1), strides=(8, 16))
    backbone.tower.blocks[2].register_forward_hook(lambda *_: pytest.fail('block 2 ran'))
    backbone(torch.randn(1, 3, 64, 64))
    with_dense = make_backbone(out_indices=(0, 1), strides=(8, 16), with_dense=True)
    assert with_dense.depth == 4


# ---------------------------------------------------------------- what trains


@pytest.mark.parametrize('options', [{}, {'trainable': 0}, {'frozen_stages': 4}])
def test_frozen_tower_has_no_gradient_and_stays_in_eval_mode(options):
    backbone = make_backbone(arch=make_arch('eva', drop_path_rate=0.5), **options).train()
    assert not trained(backbone)
    assert not any(module.training for module in backbone.tower.modules() if list(module.parameters()))
    images = torch.randn(2, 3, 64, 64)
    first, second = backbone(images), backbone(images)
    assert not any(level.requires_grad for level in first)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_trained_blocks_follow_train_and_eval():
    backbone = make_backbone(arch=make_arch('eva', drop_path_rate=0.5), trainable=1)
    images = torch.randn(8, 3, 64, 64)
    backbone.train()
    assert [block.training for block in backbone.tower.blocks] == [False, False, False, True]
    backbone.eval()
    assert not any(module.training for module in backbone.modules())
    with torch.no_grad():
        assert torch.equal(backbone(images)[-1], backbone(images)[-1])


@pytest.mark.parametrize('family', FAMILIES)
def test_optimiser_step_leaves_the_frozen_part_bit_for_bit(family):
    backbone = make_backbone(family, checkpoint=checkpoint(family), trainable=1).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    optimiser = torch.optim.AdamW(backbone.parameters(), lr=0.1, weight_decay=0.1)
    backward(backbone)
    optimiser.step()
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert changed <= trained(backbone)


@pytest.mark.parametrize(('options', 'expected'), [
    ({'trainable': 0}, []),
    ({'trainable': 1}, [3]),
    ({'trainable': 3}, [1, 2, 3]),
    ({'trainable': 4}, [0, 1, 2, 3]),
    ({'frozen_stages': -1}, [0, 1, 2, 3]),
    ({'frozen_stages': 0}, [0, 1, 2, 3]),
    ({'frozen_stages': 1}, [1, 2, 3]),
    ({'frozen_stages': 4}, []),
    ({'trainable': 1, 'out_indices': (0, 1, 2, 2)}, [2]),
    ({'trainable': 3, 'out_indices': (0, 1, 2, 2)}, [0, 1, 2]),
    ({'frozen_stages': 1, 'out_indices': (0, 1, 2, 2)}, [1, 2]),
    ({'frozen_stages': 4, 'out_indices': (0, 1, 2, 2)}, []),
    ({'trainable': 1, 'out_indices': (0, 1, 2, 2), 'with_dense': True}, [3]),
])  # fmt: skip
def test_which_blocks_train(options, expected):
    assert trained_blocks(make_backbone(**options)) == expected


@pytest.mark.parametrize(('family', 'names'), [
    ('eva', {'patch_embed.proj.weight', 'patch_embed.proj.bias', 'cls_token', 'pos_embed'}),
    ('openai', {'conv1.weight', 'ln_pre.weight', 'ln_pre.bias', 'class_embedding', 'positional_embedding'}),
])  # fmt: skip
def test_only_minus_one_lets_the_stem_train(family, names):
    stem = trained(make_backbone(family, frozen_stages=-1)) - trained(make_backbone(family, frozen_stages=0))
    assert stem == {f'tower.trunk.{name}' for name in names}


@st.composite
def options_of_a_backbone(draw: st.DrawFn) -> dict:
    family = draw(st.sampled_from(FAMILIES))
    blocks = 4 if family == 'eva' else 3
    # a class token that no attention has read yet gets no gradient, so not the first block alone
    indices = draw(st.lists(st.integers(0, blocks - 1), min_size=1, max_size=4).filter(any))
    with_dense = draw(st.booleans())
    depth = blocks if with_dense else max(indices) + 1
    freeze = draw(st.sampled_from(['trainable', 'frozen_stages']))
    stages = draw(st.integers(0, depth) if freeze == 'trainable' else st.integers(-1, blocks))
    return {
        'family': family,
        'out_indices': indices,
        'strides': draw(st.sampled_from([None, (8, 16, 32, 64)[: len(indices)]])),
        'dense_mode': draw(st.sampled_from(['value', 'vanilla'])),
        'with_dense': with_dense,
        freeze: stages,
    }


@settings(max_examples=25)
@given(options_of_a_backbone())
def test_every_parameter_that_trains_gets_a_gradient_and_no_other(options: dict):
    """What DDP asks for without `find_unused_parameters`."""
    backbone = make_backbone(**options).train()
    assert backward(backbone) == trained(backbone)


# ---------------------------------------------------------------- contradictions


@pytest.mark.parametrize(('options', 'message'), [
    ({'trainable': 1, 'frozen_stages': 1}, 'trainable or frozen_stages, not both'),
    ({'strides': (8, 16)}, '2 strides for 4 out_indices'),
    ({'strides': (4, 8, 16, 0)}, 'strides must be positive'),
    ({'strides': (4, 8, 16, 32.5)}, 'strides must be positive whole numbers'),
    ({'out_indices': (), 'strides': ()}, 'out_indices is empty'),
    ({'out_indices': (0, 1, 2, 4)}, r'block 4 does not exist; this tower has blocks 0\.\.3'),
    ({'out_indices': (0, 1, 2, -5)}, 'block -5 does not exist'),
    ({'trainable': 5}, r'trainable must be in 0\.\.4'),
    ({'trainable': -1}, r'trainable must be in 0\.\.4'),
    ({'trainable': 4, 'out_indices': (0, 1, 2, 2)}, r'trainable must be in 0\.\.3'),
    ({'frozen_stages': 5}, r'frozen_stages must be in -1\.\.4'),
    ({'frozen_stages': -2}, r'frozen_stages must be in -1\.\.4'),
    ({'dense_mode': 'sideways'}, "no dense mode 'sideways'"),
    ({'init_cfg': {'type': 'Pretrained', 'checkpoint': 'a.pth'}}, 'give the file as `checkpoint`'),
    ({'pretrained': 'open-mmlab://resnet50_v1c'}, r'model\.pretrained=None'),
    ({'arch': 'ViTamin-S'}, 'no dense path is defined for vitamin_small_224'),
])  # fmt: skip
def test_contradictory_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        make_backbone(**options)


def test_typing_errors_are_not_swallowed():
    with pytest.raises(TypeError, match='frozen_stage'):
        make_backbone(frozen_stage=1)


def test_missing_checkpoint_is_named():
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pt'):
        make_backbone(checkpoint='nowhere.pt')


def test_weights_survive_init_weights():
    """What mmengine's runner calls on every model before it trains."""
    backbone = make_backbone(checkpoint=checkpoint('eva'))
    expected = load_vlm(make_arch('eva'), checkpoint('eva')).visual.state_dict()
    backbone.init_weights()
    found: dict[str, Tensor] = backbone.tower.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

"""Tiny models of every family that open_clip builds, and open_clip's own twin with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import timm
import torch
from open_clip import CustomTextCLIP
from torch import nn

from densevlm_mm.vlm import VLM, load_vlm
from densevlm_mm.vlm.checkpoints import rename_keys

# What makes timm's models tiny: the architecture stays, its sizes shrink.
SIZES = {
    'vit_base_patch16_siglip_224': {'img_size': 32, 'patch_size': 8, 'embed_dim': 32, 'depth': 2, 'num_heads': 2},
    'vit_large_patch14_clip_224': {'img_size': 32, 'patch_size': 8, 'embed_dim': 32, 'depth': 2, 'num_heads': 2},
    'vit_medium_patch16_gap_256': {'img_size': 32, 'patch_size': 8, 'embed_dim': 32, 'depth': 2, 'num_heads': 2},
    'test_vit3': {'img_size': 32, 'patch_size': 8, 'embed_dim': 32, 'depth': 2, 'num_heads': 2},
    'convnext_base': {'depths': (1, 1, 2, 1), 'dims': (8, 12, 16, 24)},
}
TEXT = {'context_length': 12, 'vocab_size': 50, 'width': 16, 'heads': 2, 'layers': 1}
SIGLIP_TEXT = {
    **TEXT, 'no_causal_mask': True, 'pool_type': 'last', 'proj_bias': True, 'norm_kwargs': {'eps': 1e-6},
    'act_kwargs': {'approximate': 'tanh'},
}  # fmt: skip
VIT = {'image_size': 32, 'patch_size': 8, 'width': 32, 'layers': 2, 'head_width': 16}
SCALES = {'scale_heads': True, 'scale_attn_inner': True, 'scale_attn': True, 'scale_fc': True}
CLIPA = {'pool_type': 'avg', 'no_ln_pre': True, 'final_ln_after_pool': True}
RESNET = {'image_size': 64, 'patch_size': None, 'width': 8, 'layers': [1, 1, 2, 1], 'head_width': 32}


def timm_vision(name: str, pool: str, proj: str | None, image_size: int = 32) -> dict[str, Any]:
    return {'timm_model_name': name, 'timm_pool': pool, 'timm_proj': proj, 'image_size': image_size}


# family -> (channels of the shared space, vision_cfg, text_cfg, what else the model config says)
FAMILIES: dict[str, tuple[int, dict, dict, dict]] = {
    'vit': (24, VIT, TEXT, {}),
    'vit avg': (24, {**VIT, 'pool_type': 'avg'}, TEXT, {}),
    'vit clipa': (24, {**VIT, **CLIPA}, {**TEXT, 'no_causal_mask': True, 'pool_type': 'last'}, {}),
    'vit sin-cos': (24, {**VIT, 'pos_embed_type': 'sin_cos_2d', 'ls_init_value': 0.5}, TEXT, {}),
    'vit custom': (24, {**VIT, **SCALES, 'qk_norm': True}, {**TEXT, **SCALES, 'qk_norm': True}, {'quick_gelu': True}),
    'siglip': (32, timm_vision('vit_base_patch16_siglip_224', 'map', 'none'), SIGLIP_TEXT, {'init_logit_bias': -10}),
    'timm token': (24, timm_vision('vit_large_patch14_clip_224', 'token', None), TEXT, {}),
    'timm avg': (24, timm_vision('vit_medium_patch16_gap_256', '', 'linear'), TEXT, {}),
    'timm registers': (24, timm_vision('test_vit3', 'map', None), TEXT, {}),
    'resnet': (24, RESNET, TEXT, {'quick_gelu': True}),
    'convnext': (20, timm_vision('convnext_base', '', 'linear', 64), TEXT, {}),
    'convnext mlp': (20, timm_vision('convnext_base', '', 'mlp', 64), TEXT, {}),
}
TRANSFORMERS = [name for name in FAMILIES if not name.startswith(('resnet', 'convnext'))]
POOLED_BY_ATTENTION = ('siglip', 'timm registers')
CONVOLUTIONAL = ('resnet', 'convnext', 'convnext mlp')


class Twins(NamedTuple):
    ours: VLM
    theirs: nn.Module


@pytest.fixture(autouse=True, scope='module')
def tiny_timm_models() -> Iterator[None]:
    create = timm.create_model

    def create_tiny(name: str, **kwargs: object) -> nn.Module:
        return create(name, **{**SIZES.get(name, {}), **kwargs})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, 'create_model', create_tiny)
        yield


def arch_of(family: str) -> dict[str, Any]:
    embed_dim, vision, text, other = FAMILIES[family]
    return {'embed_dim': embed_dim, 'vision_cfg': dict(vision), 'text_cfg': dict(text), **other}


@pytest.fixture(scope='session')
def make_twins() -> Callable[[str], Twins]:
    """Our and open_clip's model of a family in float64 with the same random weights, every one of which matters."""

    def make(family: str) -> Twins:
        theirs = CustomTextCLIP(**arch_of(family)).eval().double()
        generator = torch.Generator().manual_seed(0)
        for name, value in theirs.state_dict().items():
            if value.is_floating_point():
                value.normal_(std=0.3, generator=generator)
            if name.endswith('running_var'):
                value.abs_().add_(0.5)
        ours = load_vlm(arch_of(family), dtype='float64')
        ours.load_state_dict(rename_keys(theirs.state_dict(), ours))
        return Twins(ours, theirs.requires_grad_(False))

    return make

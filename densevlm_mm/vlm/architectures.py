"""Model configs: by name, or as a mapping in the JSON schema of EVA-CLIP and open_clip."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from importlib.resources import files
from typing import Any

from open_clip import CLIPTextCfg, get_model_config, list_models
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer
from timm.models import is_model_in_modules
from torch import nn

from .towers import ConvNeXtTower, EvaTower, OpenAITower, ResNetTower, TimmViTTower, VisionTower
from .towers.base import check_known_keys, no_dense_path

_SHIPPED = files(__package__) / 'model_configs'
_TOP_LEVEL = {'embed_dim', 'vision_cfg', 'text_cfg', 'quick_gelu', 'custom_text', 'init_logit_bias', 'multimodal_cfg'}
# what a stored config may say about itself beside that
_DESCRIPTION = {'kind', 'keys'}
# open_clip names EVA-02 towers by their timm model, ours by EVA-CLIP's own configs
_SAME_AS = {
    'EVA02-B-16': 'EVA02-CLIP-B-16',
    'EVA02-L-14': 'EVA02-CLIP-L-14',
    'EVA02-L-14-336': 'EVA02-CLIP-L-14-336',
}
# timm's modules of models with a dense path
_TIMM_TOWERS = {'vision_transformer': TimmViTTower, 'convnext': ConvNeXtTower}
# EVA-CLIP's switches for kernels that make no difference to the numbers
_TEXT_KERNELS = {'xattn', 'fusedLN'}


def resolve_arch(arch: str | Mapping) -> dict[str, Any]:
    """Model config of a name or mapping, checked.

    Args:
        arch: 'EVA02-CLIP-B-16', 'EVA02-CLIP-L-14-336', an open_clip name such as 'ViT-B-16-quickgelu', or a mapping
            ``{embed_dim, vision_cfg, text_cfg[, quick_gelu, init_logit_bias]}``.

    Raises:
        ValueError: For an unknown name or key, or a missing one.
    """
    config = _by_name(arch) if isinstance(arch, str) else dict(arch)
    config = {key: value for key, value in config.items() if key not in _DESCRIPTION}
    check_known_keys(config, _TOP_LEVEL, 'the model config')
    missing = {'embed_dim', 'vision_cfg', 'text_cfg'} - set(config)
    if missing:
        raise ValueError(f'the model config lacks {sorted(missing)}')
    return config


def build_vision_tower(config: Mapping[str, Any]) -> VisionTower:
    """Vision tower of a model config, randomly initialised.

    Raises:
        ValueError: For an unknown key, or a model without a dense path.
    """
    embed_dim, vision_cfg = config['embed_dim'], config['vision_cfg']
    if 'multimodal_cfg' in config:
        raise no_dense_path('CoCa', 'whose image embedding is made for a captioning decoder')
    if 'eva_model_name' in vision_cfg:
        return EvaTower(embed_dim, vision_cfg)
    if vision_cfg.get('timm_model_name'):
        return _timm_tower_class(vision_cfg['timm_model_name'])(embed_dim, vision_cfg)
    if isinstance(vision_cfg.get('layers'), Sequence):
        return ResNetTower(embed_dim, vision_cfg)
    return OpenAITower(embed_dim, vision_cfg, quick_gelu=config.get('quick_gelu', False))


def build_text_tower(config: Mapping[str, Any]) -> TextTransformer:
    """Text tower of a model config, randomly initialised.

    Beside open_clip's keys, ``text_cfg.words`` may list the words of a `WordTokenizer`; they then set the size of the
    vocabulary.
    """
    known = {f.name for f in fields(CLIPTextCfg)}
    text_cfg = {k: v for k, v in config['text_cfg'].items() if k not in _TEXT_KERNELS}
    words = text_cfg.pop('words', None)
    check_known_keys(text_cfg, known, 'text_cfg')
    cfg = CLIPTextCfg(**text_cfg)
    if cfg.hf_model_name:
        raise ValueError(
            f'the text tower {cfg.hf_model_name} is not supported, since its layers come from Hugging Face over the '
            'network; use a CLIP with its own text transformer such as ViT-B-16 or ViT-B-16-SigLIP2'
        )
    quick_gelu = config.get('quick_gelu', False)
    return TextTransformer(
        context_length=cfg.context_length,
        vocab_size=cfg.vocab_size if words is None else len(words) + 3,  # padding, start and end of text
        width=cfg.width,
        heads=cfg.heads,
        layers=cfg.layers,
        mlp_ratio=cfg.mlp_ratio,
        ls_init_value=cfg.ls_init_value,
        output_dim=config['embed_dim'],
        embed_cls=cfg.embed_cls,
        no_causal_mask=cfg.no_causal_mask,
        pad_id=cfg.pad_id,
        eos_id=cfg.eos_id,
        pool_type=cfg.pool_type,
        proj_type=cfg.proj_type,
        proj_bias=cfg.proj_bias,
        act_layer=partial(QuickGELU if quick_gelu else nn.GELU, **(cfg.act_kwargs or {})),
        norm_layer=partial(LayerNorm, **(cfg.norm_kwargs or {})),
        block_type=cfg.block_type,
        qk_norm=cfg.qk_norm,
        scaled_cosine_attn=cfg.scaled_cosine_attn,
        scale_heads=cfg.scale_heads,
        scale_attn_inner=cfg.scale_attn_inner,
        scale_attn=cfg.scale_attn,
        scale_fc=cfg.scale_fc,
    )


def _timm_tower_class(name: str) -> type[VisionTower]:
    for module, tower in _TIMM_TOWERS.items():
        if is_model_in_modules(name, [module]):
            return tower
    raise no_dense_path(name, "which is neither a plain ViT nor a ConvNeXt of timm's")


def _by_name(name: str) -> dict[str, Any]:
    shipped = _SHIPPED / f'{_SAME_AS.get(name, name)}.json'
    if shipped.is_file():
        return json.loads(shipped.read_text(encoding='utf-8'))
    config = get_model_config(name)
    if config is None:
        own = sorted(entry.name[: -len('.json')] for entry in _SHIPPED.iterdir() if entry.name.endswith('.json'))
        raise ValueError(f"unknown arch {name!r}; known: {own} and open_clip's, such as {list_models()[-8:]}")
    return config

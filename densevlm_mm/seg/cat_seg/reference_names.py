"""Names in the released CAT-Seg (Cho et al., CVPR 2024): arguments and tensors of its cost aggregator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# Released argument -> ours. Those of the text and of the image features are one, since the two are compared.
_ARGUMENTS = {
    'text_guidance_dim': 'embed_dim',
    'text_guidance_proj_dim': 'text_dim',
    'appearance_guidance_proj_dim': 'appearance_dim',
    'decoder_dims': 'decoder_dims',
    'decoder_guidance_dims': 'guidance_dims',
    'decoder_guidance_proj_dims': 'guidance_proj_dims',
    'num_layers': 'num_layers',
    'nheads': 'num_heads',
    'hidden_dim': 'hidden_dim',
    'pooling_size': 'pooling',
    'window_size': 'window',
    'prompt_channel': 'num_prompts',
    'pad_len': 'pad_len',
}
_FOLLOWING = {'appearance_guidance_dim', 'feature_resolution', 'attention_type'}

# How the released names are spelt, and how ours are; each is tried on every name.
_RENAMED = {
    r'^layers\.(\d+)\.swin_block\.block_1\.': r'layers.\1.spatial.blocks.0.',
    r'^layers\.(\d+)\.swin_block\.block_2\.': r'layers.\1.spatial.blocks.1.',
    r'^layers\.(\d+)\.swin_block\.': r'layers.\1.spatial.',
    r'^layers\.(\d+)\.attention\.attention\.': r'layers.\1.classes.attn.',
    r'^layers\.(\d+)\.attention\.MLP\.0\.': r'layers.\1.classes.mlp.fc1.',
    r'^layers\.(\d+)\.attention\.MLP\.2\.': r'layers.\1.classes.mlp.fc2.',
    r'^layers\.(\d+)\.attention\.': r'layers.\1.classes.',
    r'^conv1\.': 'embedding.',
    r'^guidance_projection\.': 'appearance_projection.',
    r'^text_guidance_projection\.': 'text_projection.',
    r'^decoder_guidance_projection\.(\d+)\.': r'guidance_projections.\1.',
    r'^decoder([12])\.up\.': lambda match: f'decoder.ups.{int(match[1]) - 1}.up.',
    r'^decoder([12])\.conv\.double_conv\.([0134])\.': lambda match: (
        f'decoder.ups.{int(match[1]) - 1}.{("conv1", "norm1", "", "conv2", "norm2")[int(match[2])]}.'
    ),
    r'^head\.': 'decoder.head.',
}


def aggregator_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our constructor's arguments for those of the released aggregator.

    Raises:
        ValueError: If one is missing or unknown, or asks for what is not built here.
    """
    unknown, missing = sorted(set(config) - set(_ARGUMENTS) - _FOLLOWING), sorted({'text_guidance_dim'} - set(config))
    if unknown or missing:
        raise ValueError(f'the config of a released aggregator has unknown keys {unknown} and lacks {missing}')
    if config.get('attention_type', 'linear') != 'linear':
        raise ValueError(f"attention_type must be 'linear', got {config['attention_type']!r}")
    text, image = config['text_guidance_dim'], config.get('appearance_guidance_dim', config['text_guidance_dim'])
    if text != image:
        raise ValueError(f'appearance_guidance_dim must be text_guidance_dim {text}, got {image}')
    return {ours: config[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in config}


def aggregator_name(name: str) -> str | None:
    """Our name of a released aggregator's tensor; None for a mask, which is computed."""
    if name.endswith('.attn_mask'):
        return None
    for theirs, ours in _RENAMED.items():
        renamed, count = re.subn(theirs, ours, name)
        if count:
            return renamed
    return name


def aggregator_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a released aggregator under our names, without its masks."""
    named = ((aggregator_name(name), value) for name, value in state.items())
    return {name: value for name, value in named if name is not None}

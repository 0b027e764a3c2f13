"""What a checkpoint file is, told without building a model."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from open_clip import CLIPTextCfg, CLIPVisionCfg, get_model_config, list_models
from timm.layers import to_2tuple

from .architectures import resolve_arch
from .checkpoints import META_KEY, file_format, read_checkpoint
from .digest import sha256
from .tower_sizes import text_sizes, vision_sizes

# Channels of the first stage, by the second word of timm's names.
_CONVNEXT_WIDTHS = {'tiny': 96, 'small': 96, 'base': 128, 'large': 192, 'xlarge': 256, 'xxlarge': 384}
# Filled in while running, or computed from the native grid: no parameters.
_BUFFERS = re.compile(r'rope\.freqs_|\.(running_mean|running_var|num_batches_tracked)$')


def describe_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint file is; every value is a number, text, or a list or mapping of them.

    Args:
        path: Any file that `read_state_dict` accepts; it need not hold a two-tower model.

    Returns:
        ``file``, ``bytes``, ``sha256``, ``format``; ``container``, the entry that held the tensors; ``beside``, names
        of what else is in the file; ``tensors``, ``parameters`` and ``dtypes`` (tensors of each); ``vision`` and
        ``text``, sizes of the towers (see `tower_sizes`); ``archs``, known architectures with these sizes; ``parts``,
        tensors by the first word of their names; ``dense_mode``, ``arch`` and the rest of ``meta``, as stored.

    Raises:
        FileNotFoundError, CheckpointError: See `read_state_dict`.
    """
    checkpoint, kind = read_checkpoint(path), file_format(Path(path))
    shapes = {name: tuple(value.shape) for name, value in checkpoint.state.items()}
    sizes = {'vision': vision_sizes(shapes), 'text': text_sizes(shapes)}
    stored = checkpoint.vlm_meta.get('arch')
    archs = matching_archs(sizes['vision'], sizes['text'], stored)
    sizes['vision'] |= _heads(sizes['vision'], stored or (resolve_arch(archs[0]) if archs else {}))
    return {
        'file': str(path),
        'bytes': checkpoint.path.stat().st_size,
        'sha256': sha256(checkpoint.path),
        'format': kind,
        'container': None if kind == 'safetensors' else checkpoint.container,
        'beside': list(checkpoint.dropped),
        'tensors': len(shapes),
        'parameters': sum(v.numel() for name, v in checkpoint.state.items() if not _BUFFERS.search(name)),
        'dtypes': dict(Counter(str(v.dtype).removeprefix('torch.') for v in checkpoint.state.values())),
        **sizes,
        'archs': archs,
        'parts': dict(Counter(name.partition('.')[0] for name in shapes)),
        'dense_mode': checkpoint.dense_mode,
        'arch': stored,
        'meta': {key: value for key, value in checkpoint.meta.items() if key != META_KEY} | _facts(checkpoint.vlm_meta),
    }


def matching_archs(
    vision: Mapping[str, Any], text: Mapping[str, Any], stored: Mapping[str, Any] | None = None
) -> list[str]:
    """Known architectures that have the given sizes: those shipped here, then open_clip's.

    What leaves no trace in shapes cannot tell them apart: activations (``-quickgelu``), and the image size of
    convolutional towers.

    Args:
        vision: What `vision_sizes` found; without a tower nothing matches.
        text: What `text_sizes` found; without a tower nothing matches.
        stored: Model config that the file itself holds; it must agree then.
    """
    if not vision or not text:
        return []
    found = {**{f'vision.{key}': value for key, value in vision.items()}, **{f'text.{k}': v for k, v in text.items()}}
    return [
        name
        for name, config in _known_configs()
        if _agrees(_expected_sizes(config), found) and (stored is None or _same_config(config, stored))
    ]


def format_description(description: Mapping[str, Any]) -> str:
    """Lines for people."""
    notes = {k: v for k, v in description['meta'].items() if isinstance(v, str | int | float) and k != 'cfg'}
    rows = {
        'file': f'{description["file"]} ({description["bytes"] / 2**20:.1f} MiB)',
        'sha256': description['sha256'],
        'format': ', weights under '.join(filter(None, [description['format'], description['container']])),
        'beside': ', '.join(description['beside'][:12]),
        'tensors': f'{description["tensors"]} ({_list(description["dtypes"])})',
        'parameters': f'{description["parameters"]:,}',
        'vision': _list(description['vision']) or f'no known tower; tensors: {_list(description["parts"])}',
        'text': _list(description['text']) or 'no known tower',
        'fits arch': ', '.join(description['archs']) or 'none of the known ones',
        'stored arch': json.dumps(description['arch']) if description['arch'] else '',
        'dense mode': description['dense_mode'] or 'not stored',
        'meta': _list(notes),
    }
    return '\n'.join(f'{name:<12} {value}' for name, value in rows.items() if value)


def _list(facts: Mapping[str, Any]) -> str:
    return ', '.join(f'{key} {value}' for key, value in facts.items())


def _facts(vlm_meta: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in vlm_meta.items() if key not in ('arch', 'dense_mode')}


def _known_configs() -> Iterator[tuple[str, dict[str, Any]]]:
    shipped = files(__package__) / 'model_configs'
    for entry in sorted(shipped.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith('.json'):
            yield entry.name.removesuffix('.json'), json.loads(entry.read_text(encoding='utf-8'))
    for name in list_models():
        config = get_model_config(name)
        if 'multimodal_cfg' not in config and 'hf_model_name' not in config['text_cfg']:
            yield name, config


def _same_config(config: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    return json.loads(json.dumps(config)) == stored


def _agrees(expected: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    return all(found.get(key, value) == value for key, value in expected.items())


def _expected_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes that a model config names, under the names of `tower_sizes`; what it leaves to others is missing."""
    text = {**vars(CLIPTextCfg()), **config['text_cfg']}
    sizes = {'text.width': text['width'], 'text.layers': text['layers'], 'text.context': text['context_length']}
    sizes |= {'text.vocab': text['vocab_size'], 'text.embed_dim': config['embed_dim']}
    vision = {**vars(CLIPVisionCfg()), **config['vision_cfg']}
    timm_name = vision['timm_model_name'] or ''
    sizes |= _timm_sizes(timm_name) if timm_name else _own_sizes(vision)
    patch = sizes.get('vision.patch')
    sides = to_2tuple(vision['image_size'])
    grid = {'vision.grid': sides[0] // patch} if patch and sides[0] == sides[1] else {}
    return {**sizes, **grid, 'vision.embed_dim': config['embed_dim']}


def _own_sizes(vision: Mapping[str, Any]) -> dict[str, Any]:
    is_resnet = not isinstance(vision['layers'], int)
    family = 'EVA-02' if 'eva_model_name' in vision else 'OpenAI ResNet' if is_resnet else 'OpenAI ViT'
    layers = list(vision['layers']) if is_resnet else vision['layers']
    patch = 32 if is_resnet else vision['patch_size']
    return {'vision.family': family, 'vision.width': vision['width'], 'vision.layers': layers, 'vision.patch': patch}


def _timm_sizes(name: str) -> dict[str, Any]:
    """What the name of a timm model says; families that `tower_sizes` does not tell apart match nothing."""
    if name.startswith('convnext_'):
        return {'vision.family': 'ConvNeXt', 'vision.width': _CONVNEXT_WIDTHS.get(name.split('_')[1])}
    family = 'SigLIP' if '_siglip_' in name else 'EVA-02' if name.startswith(('eva02_base', 'eva02_large')) else None
    patch = re.search(r'patch(\d+)', name)
    if family is None or patch is None:
        return {'vision.family': name}
    return {'vision.family': family, 'vision.patch': int(patch[1])}


def _heads(vision: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int]:
    """Attention heads, which no shape tells, by a model config."""
    stated = config.get('vision_cfg', {})
    if not isinstance(stated.get('layers'), int) or not isinstance(vision.get('width'), int):
        return {}
    return {'heads': vision['width'] // stated.get('head_width', CLIPVisionCfg().head_width)}

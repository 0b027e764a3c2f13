"""Any config of MMDetection or MMSegmentation with its backbone exchanged for a vision tower."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from densevlm_mm import compat
from densevlm_mm.vlm import load_vlm
from densevlm_mm.vlm.checkpoints import save_atomically
from densevlm_mm.vlm.factory import pretrained_config
from densevlm_mm.vlm.towers import VisionTower

from .config_text import DELETE, as_assignments, leaves, overrides
from .run_parts import Level, SwapError, explained, run_backbone, run_swapped

# Blocks of the first to the last level, by the depth of the tower; four blocks are the stages of a ResNet or ConvNeXt.
LEVELS = {4: (0, 1, 2, 3), 12: (3, 5, 7, 11), 24: (6, 10, 14, 23)}


@dataclass
class Swap:
    """A config that was written.

    Attributes:
        changes: ``(key, old value or None, new value)`` of all that it says otherwise than its base.
        left: Keys ``in_channels`` that do not follow the backbone, with their values.
        notes: What could not be looked at.
    """

    changes: list[tuple[str, Any, Any]]
    left: dict[str, Any]
    notes: list[str]


def swap_backbone(
    config: str | Path,
    target: str | Path,
    *,
    arch: str | Mapping[str, Any],
    checkpoint: str | None,
    out_indices: Sequence[int] | None = None,
    trainable: int | None = None,
    check: bool = True,
    overwrite: bool = False,
) -> Swap:
    """Write a config that inherits from another one and has a `DenseVLMBackbone` in its place.

    The new backbone has as many levels as the old one, with the same strides. What reads its maps gets their channels,
    the images get the tower's mean and standard deviation, and weights of the old model are dropped.

    Args:
        config: Path, or a name such as 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'.
        target: ``.py`` file to be made.
        arch: See `load_vlm`; or a ``.json`` file.
        checkpoint: See `load_vlm`. A file is read if it is there; nothing is downloaded.
        out_indices: Blocks that become the levels; None takes the last ones of `LEVELS`.
        trainable: How many blocks train; see `DenseVLMBackbone`.
        check: Run the new parts on a small image before the file takes its place.
        overwrite: Replace a file that is there.

    Raises:
        SwapError: If it is not clear what has to change, or the result does not run.
        FileExistsError: If the target is there.
        ValueError: For an arch or checkpoint that `load_vlm` refuses.
        CompatError: If mmcv has no compiled operators.
    """
    target = _free_target(config, Path(target), overwrite)
    stock = _load(config)
    _refuse_the_unclear(stock)
    compat.require_mmcv_ops(str(config))
    old = run_backbone(stock)
    arch = json.loads(Path(arch).read_text('utf-8')) if isinstance(arch, str) and arch.endswith('.json') else arch
    tower, notes = _load_tower(arch, checkpoint)
    indices = _choose_blocks(tower, len(old), out_indices)
    backbone = _describe_backbone(arch, checkpoint, indices, [level.stride for level in old], trainable)
    model = {**_plain(stock.model), 'backbone': backbone}
    left = _follow_channels(model, old, [tower.block_channels[tower.block_index(i)] for i in indices])
    if left and not check:
        raise SwapError(f'only the check can tell whether {_listed(left)} must follow the backbone: allow it')
    _follow_images(model, tower)
    _drop_weights(model)
    before, after = ({'model': part, 'load_from': None} for part in (_plain(stock.model), model))
    before['load_from'] = stock.get('load_from')
    named = overrides(before, after)
    text = as_assignments({'_base_': _base(config, target)}) + '\n' + as_assignments(named)
    save_atomically(target, lambda file: file.write(text.encode()), lambda path: _verify(path, stock, model, check))
    return Swap(list(leaves(named, before)), left, notes)


def _free_target(config: str | Path, target: Path, overwrite: bool) -> Path:
    if target.suffix != '.py':
        raise SwapError(f'{target} must be a .py file')
    if Path(config).exists() and target.exists() and target.samefile(config):
        raise SwapError(f'{target} is the config itself: name another file')
    if target.exists() and not overwrite:
        raise FileExistsError(f'{target} exists already: name another file, or overwrite it with --force')
    return target


def _base(config: str | Path, target: Path) -> str:
    """What ``_base_`` says in the target."""
    if '::' in str(config):
        return str(config)
    path = Path(os.path.relpath(config, target.parent)).as_posix()
    return path if path.startswith('.') else f'./{path}'


def _load(config: str | Path) -> Config:
    with explained(f'{config} cannot be read'):
        inherited = f'_base_ = {str(config)!r}'
        cfg = Config.fromstring(inherited, '.py') if '::' in inherited else Config.fromfile(config)
    if not isinstance(cfg.get('model'), dict):
        raise SwapError(f'{config} has no model')
    if not isinstance(cfg.model.get('type'), str):
        raise SwapError(f'{config} is written with imports (read_base), which no config with a _base_ can inherit from')
    return cfg


def _refuse_the_unclear(cfg: Config) -> None:
    """Refuse what this module does not understand, rather than guess."""
    backbones = list(_find_backbones(cfg.model, 'model'))
    if 'model.backbone' not in backbones:
        found = f', only {", ".join(backbones)}' if backbones else ''
        raise SwapError(f'there is no model.backbone{found}: nothing to exchange')
    if len(backbones) > 1:
        raise SwapError(f'there are several backbones, {", ".join(backbones)}: write the config by hand')
    preprocessor = cfg.model.get('data_preprocessor')
    if not isinstance(preprocessor, dict) or 'data_preprocessor' in preprocessor:
        raise SwapError('model.data_preprocessor is not what normalises the images: write the config by hand')
    if 'Normalize' in str({key: value for key, value in cfg.items() if 'pipeline' in key or 'dataloader' in key}):
        raise SwapError('the pipeline normalises the images: leave it to model.data_preprocessor first')
    if 'num_layers' in ((cfg.get('optim_wrapper') or {}).get('paramwise_cfg') or {}):
        raise SwapError(
            'optim_wrapper sets learning rates by the layers of this very backbone: inherit from the config, set '
            'another optim_wrapper, and exchange the backbone of that one'
        )


def _find_backbones(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if str(key).endswith('backbone') and isinstance(value, Mapping):
                yield f'{path}.{key}'
            yield from _find_backbones(value, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _find_backbones(value, f'{path}.{index}')


def _load_tower(arch: str | Mapping[str, Any], checkpoint: str | None) -> tuple[VisionTower, list[str]]:
    """The tower with the mean and standard deviation of its weights, and what is to be said about these."""
    present = checkpoint is not None and Path(checkpoint).is_file()
    tower = load_vlm(arch, checkpoint if present else None).visual
    tag = pretrained_config(arch, checkpoint) if checkpoint else {}
    if 'mean' in tag:
        tower.mean, tower.std = tuple(tag['mean']), tuple(tag['std'])
    if present or tag or checkpoint is None:
        return tower, []
    return tower, [f'{checkpoint} is not there, so whether it fits is open; mean and std are those of its kind']


def _choose_blocks(tower: VisionTower, levels: int, out_indices: Sequence[int] | None) -> tuple[int, ...]:
    indices = LEVELS.get(len(tower.blocks), ())[-levels:] if out_indices is None else out_indices
    if len(indices) != levels:
        blocks = len(tower.blocks)
        raise SwapError(f'the backbone has {levels} levels: name as many of the {blocks} blocks with --out-indices')
    return tuple(indices)


def _describe_backbone(
    arch: str | Mapping[str, Any],
    checkpoint: str | None,
    indices: tuple[int, ...],
    strides: list[int],
    trainable: int | None,
) -> dict[str, Any]:
    backbone = {DELETE: True, 'type': 'densevlm_mm.DenseVLMBackbone', 'arch': arch, 'checkpoint': checkpoint}
    backbone['out_indices'] = indices
    if strides != [4 * 2**level for level in range(len(strides))]:  # what 'pyramid' stands for
        backbone['strides'] = tuple(strides)
    if trainable is not None:
        backbone['trainable'] = trainable
    return backbone


def _follow_channels(model: dict[str, Any], old: Sequence[Level], new: Sequence[int]) -> dict[str, Any]:
    """Give what reads the backbone its new channels; return the ``in_channels`` of heads that were none of the old.

    A neck reads the maps alone. Without one, heads may read them, some below others.
    """
    neck = model.get('neck')
    if neck:
        part, path = (neck, 'model.neck') if isinstance(neck, dict) else (neck[0], 'model.neck.0')
        parts = [(path, part)]
    else:
        heads = {key: value for key, value in model.items() if key not in ('backbone', 'train_cfg', 'test_cfg')}
        parts = list(_readers(heads, 'model'))
    left = {}
    for path, part in parts:
        channels = _new_channels(part, [level.channels for level in old], new)
        if channels is None:
            left[f'{path}.in_channels'] = part.get('in_channels')
        else:
            part['in_channels'] = channels
    if len(left) == len(parts):
        wanted, found = [level.channels for level in old], f', but {_listed(left)}' if left else ''
        raise SwapError(f'nothing has the channels {wanted} of the backbone{found}: write the config by hand')
    return left


def _readers(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if 'in_channels' in node:
            yield path, node
        for key, value in node.items():
            yield from _readers(value, f'{path}.{key}')
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _readers(value, f'{path}.{index}')


def _new_channels(part: Mapping[str, Any], old: Sequence[int], new: Sequence[int]) -> int | list[int] | None:
    """New value of ``in_channels``, or None if it is not the old channels.

    ``in_index`` tells the levels; without it, lists are of all levels, and a number is of the last one.
    """
    value, index = part.get('in_channels'), part.get('in_index')
    is_list = isinstance(value, (list, tuple))
    levels = range(len(old)) if is_list else [-1]
    if index is not None:
        levels = index if isinstance(index, (list, tuple)) else [index]
    if any(not -len(old) <= level < len(old) for level in levels):
        return None
    if [old[level] for level in levels] != (list(value) if is_list else [value]):
        return None
    return [new[level] for level in levels] if is_list else new[levels[0]]


def _follow_images(model: dict[str, Any], tower: VisionTower) -> None:
    preprocessor = model['data_preprocessor']
    for key, values in (('mean', tower.mean), ('std', tower.std)):
        preprocessor[key] = [round(255 * value, 3) for value in values]
    preprocessor['bgr_to_rgb'] = True
    if preprocessor.get('rgb_to_bgr'):
        preprocessor['rgb_to_bgr'] = False


def _drop_weights(model: dict[str, Any]) -> None:
    """Weights of the whole old model; those of the backbone went with it."""
    if model.get('pretrained') is not None:
        model['pretrained'] = None
    if 'Pretrained' in str(model.get('init_cfg')):
        model['init_cfg'] = None


def _verify(path: Path, stock: Config, model: dict[str, Any], run: bool) -> None:
    """The written file says what was meant, and what it says runs."""
    with explained('the new config cannot be read'):
        written = Config.fromfile(path)
    meant = {**model, 'backbone': {key: value for key, value in model['backbone'].items() if key != DELETE}}
    if _plain(written.model) != _plain(meant):
        raise SwapError('the new config does not give the model that was meant: write it by hand')
    if run:
        checkpoint = written.model.backbone.checkpoint
        if checkpoint is not None and not Path(checkpoint).is_file():
            written.model.backbone.checkpoint = None
        run_swapped(stock, written)


def _plain(node: Any) -> Any:
    """A copy in plain dicts, without the marks that mmengine leaves in inherited ones."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items() if key != '_scope_'}
    if isinstance(node, (list, tuple)):
        return type(node)(_plain(value) for value in node)
    return deepcopy(node)


def _listed(entries: Mapping[str, Any]) -> str:
    return ', '.join(f'{key}={value}' for key, value in entries.items())

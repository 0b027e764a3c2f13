"""Checkpoints of the released CAT-Seg, a segmentor for detectron2, under the names of ours.

The aggregator's names are those of its own parity data. The others come from descriptions of the released code (Cho et
al., CVPR 2024; for EVA-CLIP, DeCLIP, CVPR 2025). No released file was at hand, so none was converted here. Hence the
strictness: a tensor that is named otherwise than described is an error with its name in it, never left out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import CheckpointError
from densevlm_mm.vlm.checkpoint_formats import Written, model_meta
from densevlm_mm.vlm.checkpoints import (
    META_KEY,
    Checkpoint,
    read_checkpoint,
    read_content,
    rename_keys,
    save_atomically,
)
from densevlm_mm.vlm.digest import sha256

from .cat_seg import CATSeg
from .reference_names import aggregator_name

_AGGREGATOR = 'sem_seg_head.predictor.transformer.'
_CLIP = 'sem_seg_head.predictor.clip_model.'
_UPSAMPLERS = {'upsample1.': 'upsamplers.0.', 'upsample2.': 'upsamplers.1.'}
# The released code takes OpenAI's fused projections apart. The description leaves open whether into layers or tensors.
_APART = re.compile(r'(.*\.attn\.)([qkv])_proj[._](weight|bias)')
# What of the released file's meta information ours keeps.
_FACTS = ('iteration',)


def convert_catseg_checkpoint(source: str | Path, target: str | Path, model: Mapping[str, Any]) -> Written:
    """Write a checkpoint of the released CAT-Seg as one of our segmentor; names change, values and dtypes do not.

    Queries, keys and values of OpenAI's towers, which the released code keeps apart, become one tensor. Left out are
    attention masks and EVA-CLIP's rotary buffers, which are computed, and everything that is no weight.

    Args:
        source: Checkpoint of the released segmentor, with or without optimizer.
        target: A ``.pth`` or ``.pt`` file to be made. It appears once it is complete and has been loaded strictly
            into the segmentor, and not before.
        model: Config of a `CATSeg` with the same towers and aggregator. Its CLIP checkpoint is not needed: the weights
            are in the source; nor are its classes those of the source, which has none.

    Raises:
        FileNotFoundError: If there is no such source.
        CheckpointError: If the source is damaged, holds code, or does not fit the segmentor; the keys are listed.
        ValueError: If the target is no such file or the source itself, or the config is of another model.
    """
    source, target = Path(source), Path(target)
    _check_target(source, target)
    checkpoint = read_checkpoint(source)
    segmentor = _build(model)
    state = fit_to_segmentor(checkpoint, segmentor)
    meta = {key: checkpoint.meta[key] for key in _FACTS if key in checkpoint.meta}
    facts = {'method': 'CATSeg', 'source': source.name, 'source_sha256': sha256(source)}
    meta[META_KEY] = model_meta(segmentor.vlm.config, dense_mode=segmentor.vlm.dense_mode, **facts)
    meta['dataset_meta'] = segmentor.dataset_meta  # without which MMSegmentation's `init_model` looks for a decode head
    content = {'meta': meta, 'state_dict': state}
    save_atomically(
        target,
        lambda file: torch.save(content, file),
        lambda written: segmentor.load_state_dict(read_content(written)['state_dict']),
    )
    left_out = [key for key in checkpoint.state if our_name(key, segmentor) is None]
    others = [f'meta.{key}' for key in checkpoint.meta if key not in meta]
    return Written(target, len(state), (*left_out, *checkpoint.dropped, *others))


def fit_to_segmentor(checkpoint: Checkpoint, segmentor: CATSeg) -> dict[str, Tensor]:
    """Tensors of a released checkpoint under the names of a segmentor.

    Raises:
        CheckpointError: Listing the missing keys, by our names, and the others by the file's.
    """
    expected = {name: tuple(value.shape) for name, value in segmentor.state_dict().items()}
    parts, keys = defaultdict(dict), defaultdict(list)
    for key, value in checkpoint.state.items():
        name, letter = _fused_name(our_name(key, segmentor), expected)
        if name is not None:
            keys[name].append(key)
            parts[name].setdefault(letter, value)
    twice = [' and '.join(found) for name, found in keys.items() if len(found) > len(parts[name])]
    state = {name: _joined(found) for name, found in parts.items()}
    _check_fit(checkpoint.path, state, expected, keys, twice)
    return {name: state[name] for name in expected}


def our_name(key: str, segmentor: CATSeg) -> str | None:
    """Our name of a released tensor, None for one that is computed, and the key itself if it is not described."""
    if key.startswith(_AGGREGATOR):
        name = aggregator_name(key.removeprefix(_AGGREGATOR))
        return None if name is None else f'aggregator.{name}'
    if key.startswith(_CLIP):
        renamed = rename_keys({key.removeprefix(_CLIP): torch.empty(1)}, segmentor.vlm)
        return next((f'vlm.{name}' for name in renamed), None)
    renamed = (ours + key.removeprefix(theirs) for theirs, ours in _UPSAMPLERS.items() if key.startswith(theirs))
    return next(renamed, key)


def _fused_name(name: str | None, expected: Collection[str]) -> tuple[str | None, str]:
    """Name of the fused projection that a tensor is a part of, and which; or the name as it is, and ''."""
    found = _APART.fullmatch(name or '')
    fused = f'{found[1]}in_proj_{found[3]}' if found else None
    return (fused, found[2]) if fused in expected else (name, '')


def _joined(parts: Mapping[str, Tensor]) -> Tensor | None:
    """The whole of a tensor's parts; None if some are missing or of other shapes, or there is a whole beside them."""
    if set(parts) == {''}:
        return parts['']
    alike = set(parts) == set('qkv') and len({part.shape for part in parts.values()}) == 1
    return torch.cat([parts[letter] for letter in 'qkv']) if alike else None


def _build(model: Mapping[str, Any]) -> CATSeg:
    """The segmentor of a config, with random weights and without any file."""
    if str(model.get('type')).rpartition('.')[2] != CATSeg.__name__:
        raise ValueError(f'the config is of a {model.get("type")!r}; give that of a densevlm_mm.CATSeg')
    return MODELS.build({**model, 'vlm': {**model['vlm'], 'checkpoint': None}})


def _check_fit(
    path: Path,
    state: Mapping[str, Tensor | None],
    expected: Mapping[str, tuple[int, ...]],
    keys: Mapping[str, list[str]],
    twice: list[str],
) -> None:
    faults = {
        'missing': sorted(set(expected) - set(state)),
        'unexpected': sorted(key for name in set(state) - set(expected) for key in keys[name]),
        'in parts that make no whole': [' and '.join(keys[name]) for name, value in state.items() if value is None],
        'of another shape': [
            f'{" and ".join(keys[name])}: {tuple(value.shape)} in the file, {expected[name]} in the model'
            for name, value in state.items()
            if value is not None and name in expected and tuple(value.shape) != expected[name]
        ],
        'there twice': twice,
    }
    if any(faults.values()):
        listings = ''.join(_listing(title, found) for title, found in faults.items())
        raise CheckpointError(
            f'{path} is no released CAT-Seg checkpoint that fits this segmentor{listings}\n'
            'Give the config of a segmentor with the same towers, guidance blocks and aggregator.'
        )


def _listing(title: str, keys: Collection[str]) -> str:
    return f'\n  {len(keys)} {title}:' + ''.join(f'\n    {key}' for key in keys) if keys else ''


def _check_target(source: Path, target: Path) -> None:
    if target.suffix not in ('.pth', '.pt'):
        raise ValueError(f'{target} must end in .pth or .pt')
    if target.is_dir():
        raise ValueError(f'{target} is a folder; name a file in it')
    if source.exists() and target.exists() and target.samefile(source):
        raise ValueError(f'{target} is the source itself; it is not overwritten')

"""Checkpoints of the released F-ViT, a detector for MMDetection 2.x, under the names of ours.

The released names come from a description of the released code (CLIPSelf, Wu et al., arXiv:2310.01403). No released
file was at hand, so none was converted here. Hence the strictness: a tensor that is named otherwise than described is
an error with its name in it, never left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import CheckpointError, Vocabulary
from densevlm_mm.vlm.checkpoint_formats import Written, model_meta
from densevlm_mm.vlm.checkpoints import META_KEY, Checkpoint, read_checkpoint, read_state_dict, save_atomically
from densevlm_mm.vlm.digest import sha256

from .fvit import FViT

_TOWER = 'backbone.visual.'
_BOX_HEAD = 'roi_head.bbox_head.'
# Class vectors and, last, that of the word "background"; ours are two tensors.
_EMBEDDINGS = f'{_BOX_HEAD}all_embeddings'
_TEXTS = f'{_BOX_HEAD}fc_cls.texts'
_BACKGROUND_TEXT = f'{_BOX_HEAD}fc_cls.background_text'
_TEMPERATURE = f'{_BOX_HEAD}fc_cls.temperature'

# MMDetection's own linear classifier, which the released head builds and never uses.
_UNUSED = (f'{_BOX_HEAD}fc_cls.weight', f'{_BOX_HEAD}fc_cls.bias')

# How the released names begin, and how ours do; the first that fits counts. The description leaves open whether the
# second resampler is a bare layer or the only one of a Sequential. The other two have no weights.
_RENAMED = {
    'backbone.interpolate1.': 'neck.0.levels.0.',
    'backbone.interpolate2.0.': 'neck.0.levels.1.',
    'backbone.interpolate2.': 'neck.0.levels.1.',
    'neck.': 'neck.1.',
    f'{_BOX_HEAD}detect_temperature': _TEMPERATURE,
}

# Names that MMDetection has kept since; but for the text matrix, which is taken apart in the end.
_KEPT = (
    'rpn_head.',
    'roi_head.mask_head.',
    *(f'{_BOX_HEAD}{part}.' for part in ('shared_convs', 'shared_fcs', 'cls_fcs', 'reg_fcs', 'fc_reg')),
    _EMBEDDINGS,
)

# What of the released file's meta information ours keeps; the rest tells of the machine that it ran on.
_FACTS = ('epoch', 'iter', 'mmdet_version')


def convert_fvit_checkpoint(source: str | Path, target: str | Path, model: Mapping[str, Any]) -> Written:
    """Write a checkpoint of the released F-ViT as one of our detector; names change, values and dtypes do not.

    Left out are EVA-CLIP's rotary buffers, which are computed, the linear classifier that the released head has without
    using it, and everything that is no weight.

    Args:
        source: Checkpoint of the released detector, with or without optimizer.
        target: A ``.pth`` or ``.pt`` file to be made. It appears once it is complete and has been loaded strictly
            into the detector, and not before.
        model: Config of a `FViT` with the same layers and as many classes. Its CLIP checkpoint and text embeddings
            are not needed: both are in the source.

    Raises:
        FileNotFoundError: If there is no such source.
        CheckpointError: If the source is damaged, holds code, or does not fit the detector; the keys are listed. Or if
            it names other classes.
        ValueError: If the target is no such file or the source itself, or the config is of another model.
    """
    source, target = Path(source), Path(target)
    _check_target(source, target)
    checkpoint = read_checkpoint(source)
    detector = _build(model)
    _check_classes(checkpoint, detector.vocabulary)
    state = fit_to_detector(checkpoint, detector)
    meta = {key: checkpoint.meta[key] for key in _FACTS if key in checkpoint.meta}
    meta['dataset_meta'] = {'classes': list(detector.vocabulary.names)}
    meta[META_KEY] = model_meta(None, method='FViT', source=source.name, source_sha256=sha256(source))
    content = {'meta': meta, 'state_dict': {**state, **detector.records()}}
    save_atomically(
        target,
        lambda file: torch.save(content, file),
        lambda written: detector.load_state_dict(read_state_dict(written)),
    )
    left_out = (*_dropped(checkpoint.state, detector), *checkpoint.dropped)
    return Written(target, len(state), (*left_out, *(f'meta.{key}' for key in checkpoint.meta if key not in meta)))


def fit_to_detector(checkpoint: Checkpoint, detector: FViT) -> dict[str, Tensor]:
    """Tensors of a released checkpoint under the names of a detector.

    The text matrix is accepted with the classes in its rows or in its columns, and the temperature as a number or a
    vector of one.

    Raises:
        CheckpointError: Listing the missing keys, by our names, and the others by the file's.
    """
    dropped = set(_dropped(checkpoint.state, detector))
    names = {key: _our_name(key, detector) for key in checkpoint.state if key not in dropped}
    shapes = _expected_shapes(detector)
    values = {key: _reshaped(checkpoint.state[key], name, shapes.get(name)) for key, name in names.items()}
    _check_fit(checkpoint.path, names, values, shapes)
    state = {name: values[key] for key, name in names.items()}
    rows = state.pop(_EMBEDDINGS)
    if not _are_unit(rows):
        raise CheckpointError(f'{checkpoint.path}: the vectors of {_EMBEDDINGS} are not of length 1, as texts must be')
    return {**state, _TEXTS: rows[:-1].clone(), _BACKGROUND_TEXT: rows[-1].clone()}


def _build(model: Mapping[str, Any]) -> FViT:
    """The detector of a config, with random weights; whole, and without any file."""
    if str(model.get('type')).rpartition('.')[2] != FViT.__name__:
        raise ValueError(f'the config is of a {model.get("type")!r}; give that of a densevlm_mm.FViT')
    backbone = {**model['backbone'], 'checkpoint': None}
    return MODELS.build({**model, 'backbone': backbone, 'text_embeddings': None, 'save_tower': True})


def _dropped(keys: Iterable[str], detector: FViT) -> list[str]:
    towers = (key for key in keys if key.startswith(_TOWER))
    computed = {key for key in towers if detector.tower.rename_key(key.removeprefix(_TOWER)) is None}
    return [key for key in keys if key in computed or key in _UNUSED]


def _our_name(key: str, detector: FViT) -> str | None:
    """Our name of a released tensor that is not dropped, None if it is not described."""
    if key.startswith(_TOWER):
        return f'backbone.tower.{detector.tower.rename_key(key.removeprefix(_TOWER))}'
    renamed = (ours + key.removeprefix(theirs) for theirs, ours in _RENAMED.items() if key.startswith(theirs))
    return next(renamed, key if key.startswith(_KEPT) else None)


def _expected_shapes(detector: FViT) -> dict[str, tuple[int, ...]]:
    """Shapes by our names, except for the text matrix, which goes by the released one."""
    shapes = {name: tuple(value.shape) for name, value in detector.state_dict().items()}
    for name in (_TEXTS, _BACKGROUND_TEXT, *detector.records()):
        shapes.pop(name, None)  # a detector that was given no texts has none
    return {**shapes, _EMBEDDINGS: (len(detector.vocabulary) + 1, detector.tower.embed_dim)}


def _reshaped(value: Tensor, name: str | None, shape: tuple[int, ...] | None) -> Tensor:
    if name == _TEMPERATURE and value.numel() == 1 and shape is not None:
        return value.reshape(shape)
    if name == _EMBEDDINGS and value.ndim == 2:
        # a square one tells by its lengths
        return next((rows for rows in (value, value.T) if rows.shape == shape and _are_unit(rows)), value)
    return value


def _are_unit(rows: Tensor) -> bool:
    """Whether the rows have length 1, as precisely as half precision can say."""
    return bool(((rows.double().norm(dim=-1) - 1).abs() < 1e-2).all())


def _check_fit(
    path: Path,
    names: Mapping[str, str | None],
    values: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    keys_of = defaultdict(list)
    for key, name in names.items():
        keys_of[name].append(key)
    faults = {
        'missing': sorted(set(shapes) - set(keys_of)),
        'unexpected': sorted(key for key, name in names.items() if name not in shapes),
        'of another shape': [
            f'{key}: {tuple(values[key].shape)} in the file, {shapes[name]} in the model'
            for key, name in names.items()
            if name in shapes and values[key].shape != shapes[name]
        ],
        'there twice': [' and '.join(keys) for name, keys in keys_of.items() if name in shapes and len(keys) > 1],
    }
    if any(faults.values()):
        listings = ''.join(_listing(title, keys) for title, keys in faults.items())
        raise CheckpointError(
            f'{path} is no released F-ViT checkpoint that fits this detector{listings}\n'
            'Give the config of a detector with the same tower, layers, norms, masks and number of classes.'
        )


def _listing(title: str, keys: Collection[str]) -> str:
    return f'\n  {len(keys)} {title}:' + ''.join(f'\n    {key}' for key in keys) if keys else ''


def _check_classes(checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    """Compare the classes that the file names, one per label, with ours.

    MMDetection 2.x leaves the names of a whole data set there, also where the annotations are of a part of it. Those
    say nothing about the labels.
    """
    stored = checkpoint.meta.get('CLASSES')
    if not isinstance(stored, list | tuple) or len(stored) != len(vocabulary):
        return
    pairs = enumerate(zip(stored, vocabulary.names, strict=True))
    label, theirs, ours = next(((i, *pair) for i, pair in pairs if pair[0] != pair[1]), (None, None, None))
    if label is not None:
        raise CheckpointError(
            f'{checkpoint.path} was trained on other classes: label {label} is {theirs!r}, not {ours!r}. Give a config '
            'whose vocabulary lists the classes of the file in its order'
        )


def _check_target(source: Path, target: Path) -> None:
    if target.suffix not in ('.pth', '.pt'):
        raise ValueError(f'{target} must end in .pth or .pt')
    if target.is_dir():
        raise ValueError(f'{target} is a folder; name a file in it')
    if source.exists() and target.exists() and target.samefile(source):
        raise ValueError(f'{target} is the source itself; it is not overwritten')

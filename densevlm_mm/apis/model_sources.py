"""From what somebody calls a model to what can be built: files, names and configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

import densevlm_mm
from densevlm_mm.vlm import describe_checkpoint
from densevlm_mm.vlm.architectures import resolve_arch

_PACKAGE = Path(densevlm_mm.__file__).parent
# configs of an installed package, those of a checkout
_CONFIG_FOLDERS = (_PACKAGE / '.mim' / 'configs', _PACKAGE.parent / 'configs')
# Which of a config's models is a CLIP: that of classifiers and segmentors, a distiller's.
_CLIP_KEYS = ('vlm', 'student')
_FILES = ('.pt', '.pth', '.bin', '.npz', '.safetensors', '.py')
_SIZED = ('densevlm_mm.ResizeLongestPad', 'densevlm_mm.LoadResizedImage')


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """A CLIP, and how it wants to be asked.

    Attributes:
        vlm: Arguments of `load_vlm`.
        vocabulary: Classes of its config, or None.
        templates: Prompt templates.
        size: Longest side of images in px, or None where nothing says it.
    """

    vlm: dict[str, Any]
    vocabulary: Any = None
    templates: Any = 'vild'
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class ConfigSource:
    """A detector or segmentor of a config.

    Attributes:
        config: The config.
        weights: Checkpoint of the whole model, or None.
    """

    config: Config
    weights: str | None = None


def find_config(model: str | Path | Config) -> Config | None:
    """The config that is meant, or None if it is a checkpoint or an architecture.

    Args:
        model: A config, the path of one, or the name of one in this package's ``configs`` (`swap/...` and others go by
            their last part).

    Raises:
        FileNotFoundError: If the path of a config leads nowhere.
    """
    if isinstance(model, Config):
        return model
    if str(model).endswith('.py'):
        if not Path(model).is_file():
            raise FileNotFoundError(f'config {model} does not exist')
        return Config.fromfile(model)
    if Path(model).exists():
        return None
    for folder in _CONFIG_FOLDERS:
        found = next((path for path in folder.rglob(f'{Path(model).name}.py') if '_base_' not in path.parts), None)
        if found is not None:
            return Config.fromfile(found)
    return None


def clip_source(
    model: str | Path | Mapping[str, Any],
    *,
    weights: str | Path | None = None,
    arch: str | Mapping[str, Any] | None = None,
    dense_mode: str | None = None,
) -> ClipSource:
    """A CLIP of a checkpoint file, or of an architecture and its weights.

    Args:
        model: A checkpoint; an architecture, see `load_vlm`; or a config (`Config`) with a CLIP.
        weights: Checkpoint, where `model` is an architecture or a config.
        arch: Architecture, where `model` is a checkpoint; None finds it out.
        dense_mode: See `load_vlm`.

    Raises:
        ValueError: If there are no weights, or several architectures fit them.
        FileNotFoundError, CheckpointError: See `densevlm_mm.vlm.read_state_dict`.
    """
    if isinstance(model, Config):
        return _clip_of_config(model, weights, dense_mode)
    is_file = not isinstance(model, Mapping) and Path(model).is_file()
    if is_file and weights is not None:
        raise ValueError(f'{model} is a checkpoint: leave weights={weights} out, or name an arch or a config as model')
    if not is_file:
        _refuse_absent_file(model)
        resolve_arch(model)  # refuses what is neither a file nor an architecture
        if weights is None:
            raise ValueError(f'{model} would have random weights, which say nothing: give weights=CHECKPOINT')
        return ClipSource(vlm={'arch': model, 'checkpoint': str(weights), 'dense_mode': dense_mode})
    return ClipSource(vlm={'arch': arch or find_arch(model), 'checkpoint': str(model), 'dense_mode': dense_mode})


def find_arch(checkpoint: str | Path) -> str | dict[str, Any]:
    """Architecture of a checkpoint: the one that it stores, else the known one that has its sizes.

    Raises:
        ValueError: If none has, or several that differ in what no size tells.
        FileNotFoundError, CheckpointError: See `densevlm_mm.vlm.read_state_dict`.
    """
    facts = describe_checkpoint(checkpoint)
    if facts['arch']:
        return facts['arch']
    if not facts['archs']:
        raise ValueError(
            f'{checkpoint} fits no known architecture: give arch=, or for a detector or segmentor its config as model '
            'and this file as weights (tools/misc/describe_checkpoint.py says what it is)'
        )
    is_openai = facts['format'] == 'TorchScript'  # whose models all have QuickGELU
    kinds = {name: _untold(resolve_arch(name)) for name in facts['archs']}
    fitting = [name for name in kinds if not is_openai or kinds[name][0]]
    if len({kinds[name] for name in fitting}) > 1:
        raise ValueError(f'{checkpoint} may be any of {fitting}, whose sizes are the same: give arch=')
    return fitting[0]


def _refuse_absent_file(model: Any) -> None:
    if isinstance(model, str | Path) and Path(model).suffix in _FILES:
        raise FileNotFoundError(
            f'{model} does not exist: give the path of a checkpoint, a config or the name of an arch'
        )


def _untold(config: Mapping[str, Any]) -> tuple[bool, str]:
    """What differs between models of the same sizes."""
    return bool(config.get('quick_gelu', False)), str(config['vision_cfg'].get('image_size'))


def _clip_of_config(config: Config, weights: str | Path | None, dense_mode: str | None) -> ClipSource:
    model = config.get('model') or {}
    part = next((key for key in _CLIP_KEYS if isinstance(model.get(key), Mapping)), None)
    if part is None:
        raise ValueError('the config has no CLIP of its own (model.vlm or model.student): give a CLIP as model')
    options = {key: _plain(model[part].get(key)) for key in ('arch', 'checkpoint', 'dense_mode')}
    options['checkpoint'] = str(weights) if weights is not None else options['checkpoint']
    options['dense_mode'] = dense_mode or options['dense_mode']
    if options['checkpoint'] is None:
        raise ValueError('the config names no checkpoint of its CLIP: give weights=CHECKPOINT')
    vocabulary = model.get('eval_vocabulary') or model.get('vocabulary')
    templates = model.get('eval_templates') or model.get('templates') or 'vild'
    return ClipSource(vlm=options, vocabulary=_plain(vocabulary), templates=_plain(templates), size=_size_of(config))


def _size_of(config: Config) -> int | None:
    """Longest side of images by the pipeline of a config."""
    for key in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        dataset = (config.get(key) or {}).get('dataset') or {}
        for step in dataset.get('pipeline') or ():
            if step.get('type') in _SIZED:
                return step['size']
    return None


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value

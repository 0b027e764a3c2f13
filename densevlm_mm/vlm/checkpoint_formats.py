"""Writing checkpoints: in our format, open_clip's and the reference's, with every key accounted for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import safetensors.torch
import torch
from open_clip import CLIP, CLIPTextCfg, CustomTextCLIP
from torch import Tensor

from densevlm_mm.version import __version__

from .architectures import resolve_arch
from .checkpoints import (
    HEADER_KEY,
    META_KEY,
    Checkpoint,
    CheckpointError,
    fit_to_model,
    read_checkpoint,
    rename_keys,
    save_atomically,
)
from .digest import sha256
from .factory import resolve_dtype
from .model import VLM
from .positions import rotary_table
from .towers import EvaTower
from .towers.eva import RENAMED

FORMATS = ('ours', 'open_clip', 'reference')
_SUFFIXES = ('.pth', '.pt', '.safetensors')
# The text of a training config is long and names folders of the machine that it ran on.
_PRIVATE = ('cfg', 'dataset_meta')
# What a file says about its model beside the arch, and others keep.
_FACTS = ('dense_mode', 'mean', 'std', 'method')


@dataclass(frozen=True)
class Written:
    """A finished file.

    Attributes:
        path: Where it is.
        tensors: How many it holds.
        dropped: Names of what the source held and this file does not.
    """

    path: Path
    tensors: int
    dropped: tuple[str, ...]


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    arch: str | Mapping[str, Any] | None = None,
    *,
    to: str = 'ours',
    dtype: str | torch.dtype | None = None,
) -> Written:
    """Write a checkpoint in another format; nothing but names changes, unless a dtype is given.

    'ours' holds the weights under our names and the meta information ``arch``, ``dense_mode``, ``mean``, ``std``,
    ``method`` and ``version``, as far as they are known; 'open_clip' is what
    ``open_clip.create_model(..., pretrained=target)`` loads; 'reference' is what DenseVLM, CLIPSelf and EVA-CLIP load,
    with EVA-CLIP's rotary buffers computed anew.

    Args:
        source: Any file that `read_state_dict` accepts.
        target: A ``.pth``, ``.pt`` or ``.safetensors`` file to be made. It appears once it is complete and has been
            read back, and not before.
        arch: Name, mapping or ``.json`` file of the model config; None takes what the source says.
        to: One of `FORMATS`.
        dtype: Dtype of the floating-point weights, or its name; None keeps each as it is.

    Raises:
        FileNotFoundError: If there is no such source.
        CheckpointError: If the source is damaged, holds code, or does not fit the architecture; the keys are listed. Or
            if a value does not fit the dtype.
        ValueError: For an unknown arch, format, dtype or suffix, a target that is the source, and an architecture that
            the format cannot hold.
    """
    source, target = Path(source), Path(target)
    _check_target(source, target, to)
    checkpoint = read_checkpoint(source)
    config = _model_config(checkpoint, arch)
    with torch.device('meta'):
        vlm = VLM(config)
    state = fit_to_model(checkpoint, vlm)
    state = {name: _cast(name, value, resolve_dtype(dtype)) for name, value in state.items()}
    if to != 'ours':
        names = _reference_names(vlm, config) if to == 'reference' else _open_clip_names(vlm, config)
        buffers = rope_buffers(vlm, state) if to == 'reference' else {}
        state = {names[name]: value for name, value in state.items()} | buffers
    meta = _kept_meta(checkpoint, config, to)
    _write(target, state, meta, to)
    dropped = (*checkpoint.dropped, *(f'meta.{key}' for key in checkpoint.meta if key not in meta))
    return Written(target, len(state), dropped)


def publish_checkpoint(source: str | Path, target: str | Path, arch: str | Mapping[str, Any] | None = None) -> Written:
    """Write what others need of a checkpoint: the weights of the model, and what model it is.

    Of a distiller's training checkpoint that is the student.

    Args:
        source: Any file that `read_state_dict` accepts.
        target: File to be made. The first 8 digits of its SHA-256 are appended to its name, as OpenMMLab does.
        arch: See `convert_checkpoint`, also for errors.
    """
    target = Path(target)
    _check_target(Path(source), target, 'ours')
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix='.', dir=target.parent) as folder:
        written = convert_checkpoint(source, Path(folder) / target.name, arch)
        published = target.with_stem(f'{target.stem}-{sha256(written.path)[:8]}')
        _check_target(Path(source), published, 'ours')
        written.path.replace(published)
    return Written(published, written.tensors, written.dropped)


def model_meta(config: Mapping[str, Any] | None, **facts: str | Sequence[float] | None) -> dict[str, Any]:
    """What a checkpoint stores about its model, in types that any reader knows.

    Args:
        config: Model config.
        facts: ``dense_mode``, ``mean``, ``std`` and ``method``; what is None is left out.
    """
    known = {'arch': config, 'version': __version__, **facts}
    return json.loads(json.dumps({key: value for key, value in known.items() if value is not None}))


def rope_buffers(vlm: VLM, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """EVA-CLIP's rotary tables at the native grid, once for the tower and once per block; none for other towers.

    Args:
        vlm: Model, possibly on the meta device.
        state: Its weights, whose dtype the tables take.

    Returns:
        ``visual.rope.freqs_cos`` and the like, each ``(grid * grid, head_dim)``.

    Raises:
        ValueError: If the native grid is not square, which EVA-CLIP requires.
    """
    tower = vlm.visual
    if not isinstance(tower, EvaTower):
        return {}
    grid = tuple(side // patch for side, patch in zip(tower.image_size, tower.patch_size, strict=True))
    if grid[0] != grid[1]:
        raise ValueError(f"the reference's EVA towers have square grids, not {grid}")
    table = rotary_table(grid, tower.head_dim, tower.rope_span, torch.device('cpu'))
    sin, cos = table.to(state['visual.trunk.pos_embed'].dtype).chunk(2, dim=-1)
    owners = ['visual.rope', *(f'visual.blocks.{i}.attn.rope' for i in range(len(tower.blocks)))]
    tables = {'freqs_cos': cos, 'freqs_sin': sin}
    return {f'{owner}.{name}': values.clone() for owner in owners for name, values in tables.items()}


def _check_target(source: Path, target: Path, to: str) -> None:
    if to not in FORMATS:
        raise ValueError(f'unknown format {to!r}; known: {FORMATS}')
    suffixes = _SUFFIXES if to != 'reference' else ('.pth', '.pt')
    if target.suffix not in suffixes:
        raise ValueError(f'{target} must end in one of {suffixes}')
    if target.is_dir():
        raise ValueError(f'{target} is a folder; name a file in it')
    if source.exists() and target.exists() and target.samefile(source):
        raise ValueError(f'{target} is the source itself; it is not overwritten')


def _model_config(checkpoint: Checkpoint, arch: str | Mapping[str, Any] | None) -> dict[str, Any]:
    arch = arch or checkpoint.vlm_meta.get('arch')
    if arch is None:
        raise ValueError(f'{checkpoint.path} does not say what model it is of: give its arch')
    if isinstance(arch, str) and arch.endswith('.json'):
        arch = json.loads(Path(arch).read_text(encoding='utf-8'))
    return resolve_arch(arch)


def _cast(name: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A compact copy, in another dtype if it is of floating point."""
    cast = value.to(dtype) if dtype is not None and value.is_floating_point() else value
    if cast is not value and value.isfinite().all() and not cast.isfinite().all():
        raise CheckpointError(f'{name} holds values beyond {dtype}, up to {value.abs().max():g}: keep its dtype')
    return cast.detach().clone(memory_format=torch.contiguous_format)


def _open_clip_names(vlm: VLM, config: Mapping[str, Any]) -> dict[str, str]:
    """Open_clip's name of each of our tensors: what our own renaming makes of theirs, read backwards."""
    if isinstance(vlm.visual, EvaTower):
        return {name: name for name in vlm.state_dict()}  # ours are those of open_clip's EVA02 models
    text_cfg = {f.name: config['text_cfg'][f.name] for f in fields(CLIPTextCfg) if f.name in config['text_cfg']}
    arguments = {key: value for key, value in config.items() if key != 'custom_text'}
    with torch.device('meta'):
        model = (CustomTextCLIP if config.get('custom_text') else CLIP)(**{**arguments, 'text_cfg': text_cfg})
    theirs = {name: next(iter(rename_keys({name: value}, vlm))) for name, value in model.state_dict().items()}
    names = {ours: name for name, ours in theirs.items()}
    unmatched = sorted(set(names) ^ set(vlm.state_dict()))
    if unmatched or len(names) < len(theirs):
        raise ValueError(f"open_clip's model of this architecture has other tensors: {unmatched[:10]}")
    return names


def _reference_names(vlm: VLM, config: Mapping[str, Any]) -> dict[str, str]:
    """The reference's name of each of our tensors: EVA-CLIP's, or OpenAI's with the text tower at the root."""
    if isinstance(vlm.visual, EvaTower):
        return {name: _eva_clip_name(name) for name in vlm.state_dict()}
    if config.get('custom_text'):
        raise ValueError("the reference's format has the text tower at the root, which this architecture has not")
    return _open_clip_names(vlm, config)


def _eva_clip_name(name: str) -> str:
    if not name.startswith('visual.trunk.blocks.'):
        return name.replace('visual.trunk.', 'visual.')
    original = {ours: theirs for theirs, ours in RENAMED.items()}
    number, _, inner = name.removeprefix('visual.trunk.blocks.').partition('.')
    module, _, leaf = inner.rpartition('.')
    inner = original.get(inner) or f'{original.get(module, module)}.{leaf}'
    return f'visual.blocks.{number}.{inner}'


def _kept_meta(checkpoint: Checkpoint, config: Mapping[str, Any], to: str) -> dict[str, Any]:
    if to == 'open_clip':
        return {}
    if to == 'reference':
        return {'epoch': checkpoint.meta.get('epoch', 0), 'name': checkpoint.meta.get('name', checkpoint.path.stem)}
    numbers = {key: value for key, value in checkpoint.meta.items() if isinstance(value, str | int | float)}
    known = {key: value for key, value in checkpoint.vlm_meta.items() if key in _FACTS}
    return {key: numbers[key] for key in numbers if key not in _PRIVATE} | {META_KEY: model_meta(config, **known)}


def _write(target: Path, state: dict[str, Tensor], meta: dict[str, Any], to: str) -> None:
    content = {
        'ours': {'meta': meta, 'state_dict': state},
        'open_clip': state,
        'reference': {**meta, 'state_dict': state},
    }[to]

    def write(file: IO[bytes]) -> None:
        if target.suffix == '.safetensors':
            header = {'format': 'pt'} | ({HEADER_KEY: json.dumps(meta)} if meta else {})
            file.write(safetensors.torch.save(state, header))
        else:
            torch.save(content, file)

    def check(written: Path) -> None:
        read = read_checkpoint(written).state
        wrong = sorted({*set(read) ^ set(state), *(k for k in set(read) & set(state) if not _same(read[k], state[k]))})
        if wrong:
            raise CheckpointError(f'{target} does not read back as it was written, and is not kept: {wrong[:10]}')

    save_atomically(target, write, check)


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, NaN included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))

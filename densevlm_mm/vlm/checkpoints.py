"""Reading CLIP checkpoints: safely, strictly, from every format that EVA-CLIP, OpenAI, open_clip and mmengine write."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

if TYPE_CHECKING:
    from .model import VLM

# Where the weights may sit, in the order in which EVA-CLIP looks.
_CONTAINERS = ('model', 'module', 'state_dict')
# Under which our own models (`densevlm_mm.models.RegionModel`) keep theirs: the student, for a distiller.
_OWN_PREFIX = 'vlm.'
# OpenAI's archives carry these beside the weights.
_NOT_WEIGHTS = ('input_resolution', 'context_length', 'vocab_size')
# An mmengine checkpoint also holds its log history. These globals are replaced by inert stand-ins while reading, so
# that the file opens without mmengine and without running anything.
_INERT_GLOBALS = (
    'mmengine.logging.history_buffer.HistoryBuffer', 'builtins.getattr', 'numpy.core.multiarray._reconstruct',
    'numpy._core.multiarray._reconstruct', 'numpy.core.multiarray.scalar', 'numpy._core.multiarray.scalar',
    'numpy.ndarray', 'numpy.dtype', 'numpy.dtypes.Float64DType', 'numpy.dtypes.Float32DType',
    'numpy.dtypes.Int64DType', 'collections.deque', '_codecs.encode',
)  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that cannot be read safely, or does not fit the model; the message says why and what to do."""


class _Inert:
    """Takes the place of an object that is not wanted."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Named tensors of a checkpoint file, containers and ``module.`` prefixes removed.

    Args:
        path: ``.safetensors``; a ``.pt``/``.pth`` file with the tensors bare or under ``model``, ``module`` or
            ``state_dict``; an OpenAI TorchScript archive; or a checkpoint of our own runners.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is damaged, would run code when unpickled, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    content = _read(path)
    for container in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f'{path} holds no state dict')
    state = {str(key).removeprefix('module.'): value for key, value in content.items() if key not in _NOT_WEIGHTS}
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f'{path} holds no state dict: {strange[:5]} are not tensors')
    return _own_model(state)


def load_checkpoint(vlm: VLM, path: str | Path) -> None:
    """Load a checkpoint file into a two-tower model, every key accounted for.

    Values are cast to the parameters' dtype and device.

    Args:
        vlm: Model of the checkpoint's architecture.
        path: See `read_state_dict`.

    Raises:
        CheckpointError: Listing the missing, unexpected and mis-shaped keys.
    """
    state = rename_keys(read_state_dict(path), vlm)
    expected = vlm.state_dict()
    missing = sorted(set(expected) - set(state))
    unexpected = sorted(set(state) - set(expected))
    shapes = [
        f'{key}: {tuple(state[key].shape)} in the file, {tuple(expected[key].shape)} in the model'
        for key in sorted(set(state) & set(expected))
        if state[key].shape != expected[key].shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f'{path} does not fit this architecture'
            + _listing('missing', missing)
            + _listing('unexpected', unexpected)
            + _listing('of another shape', shapes)
            + '\nGive the arch that the file was trained with.'
        )
    vlm.load_state_dict(state)


def rename_keys(state: Mapping[str, Tensor], vlm: VLM) -> dict[str, Tensor]:
    """A state dict of any supported origin under our names; buffers that are recomputed are dropped.

    Our names are open_clip's of a timm tower: ``visual.trunk.*``, ``text.*``, ``logit_scale``. Open_clip's older layout
    has the text tower at the root.
    """
    renamed = {}
    for key, value in state.items():
        if key.startswith('visual.'):
            inner = vlm.visual.rename_key(key.removeprefix('visual.'))
            if inner is not None:
                renamed['visual.' + inner] = value
        elif key.startswith('text.') or key in ('logit_scale', 'logit_bias'):
            renamed[key] = value
        else:
            renamed['text.' + key] = value
    if 'logit_scale' in renamed:
        renamed['logit_scale'] = renamed['logit_scale'].reshape(())
    return renamed


def save_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file beside its place and rename it, so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        with beside.open('wb') as file:
            write(file)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _read(path: Path) -> object:
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        if _is_torchscript(path):
            # OpenAI's own files. Opening one runs no Python; only its tensors are taken.
            return torch.jit.load(path, map_location='cpu').state_dict()
        return _load_tensors(path)
    except pickle.UnpicklingError as error:
        code = re.search(r'GLOBAL (\S+)', str(error))  # the rest of torch's message tells how to run it
        reason = f'reading it would run {code[1]}' if code else 'it is damaged, or reading it would run code'
        raise CheckpointError(
            f'{path} is refused: {reason}. '
            'Ask for a file that holds tensors only, or convert it to .safetensors on a machine you can spare.'
        ) from error
    except Exception as error:  # a damaged file may raise anything
        raise CheckpointError(f'{path} is damaged or no checkpoint: {error}') from error


def _load_tensors(path: Path) -> object:
    """`torch.load` that knows tensors and the stand-ins, and nothing that other packages declared safe."""
    declared = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([(_Inert, name) for name in _INERT_GLOBALS])
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(declared)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith('/constants.pkl') for name in archive.namelist())


def _own_model(state: dict[str, Tensor]) -> dict[str, Tensor]:
    own = {key.removeprefix(_OWN_PREFIX): value for key, value in state.items() if key.startswith(_OWN_PREFIX)}
    return own or state


def _listing(title: str, keys: list[str]) -> str:
    shown = ''.join(f'\n    {key}' for key in keys[:20])
    more = f'\n    ... and {len(keys) - 20} more' if len(keys) > 20 else ''
    return f'\n  {len(keys)} {title}:{shown}{more}' if keys else ''

"""Reading CLIP checkpoints: safely, strictly, from every format that EVA-CLIP, OpenAI, open_clip and mmengine write."""

from __future__ import annotations

import json
import os
import pickle
import re
import secrets
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

if TYPE_CHECKING:
    from .model import VLM

# Where the weights may sit, in the order in which EVA-CLIP looks.
_CONTAINERS = ('model', 'module', 'state_dict')
# Under which our own models (`densevlm_mm.models.RegionModel`) keep theirs: the student, for a distiller.
_OWN_PREFIX = 'vlm.'
# OpenAI's archives carry these beside the weights.
_NOT_WEIGHTS = ('input_resolution', 'context_length', 'vocab_size')
# Entry of the meta information that tells what model a file is of.
META_KEY = 'vlm'
# Entry of a .safetensors file's header with the meta information, as JSON.
HEADER_KEY = 'densevlm_mm'
# At the root, beside the towers; some files hold them as vectors of one.
_SCALARS = ('logit_scale', 'logit_bias')
# What whole detectors and segmentors keep their tensors under.
_OTHER_MODELS = ('backbone.', 'neck.', 'rpn_head.', 'roi_head.', 'bbox_head.', 'decode_head.', 'auxiliary_head.')
# An mmengine checkpoint also holds its log history. These globals are replaced by inert stand-ins while reading, so
# that the file opens without mmengine and without running anything.
_INERT_GLOBALS = (
    'numpy.core.multiarray._reconstruct', 'numpy._core.multiarray._reconstruct', 'numpy.core.multiarray.scalar',
    'numpy._core.multiarray.scalar', 'numpy.ndarray', 'numpy.dtype', 'numpy.dtypes.Float64DType',
    'numpy.dtypes.Float32DType', 'numpy.dtypes.Int64DType', 'collections.deque', '_codecs.encode',
)  # fmt: skip
# PyTorch's list of what may be unpickled is one of the whole process.
_safe_globals = threading.Lock()


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


class _InertBuffer(_Inert):
    """Takes the place of mmengine's HistoryBuffer."""


def _inert_statistic(owner: object, name: object) -> str:
    """Takes the place of getattr, by which a buffer's statistics are pickled.

    mmengine reads the file again with the real one, which would hand it every attribute of whatever it can name. A
    name, unlike a stand-in, can be neither called nor written to.
    """
    if owner is not _InertBuffer or not isinstance(name, str) or name.startswith('_'):
        raise pickle.UnpicklingError('GLOBAL builtins.getattr')
    return name


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        path: The file.
        state: Named tensors, as `read_state_dict` gives them.
        meta: Numbers and text, possibly nested, that the file holds beside them.
        container: Name of the entry that held the tensors; None where they lay bare.
        dropped: Names of what else is in the file: entries such as 'optimizer', and tensors of no two-tower model.
    """

    path: Path
    state: dict[str, Tensor]
    meta: dict[str, Any]
    container: str | None = None
    dropped: tuple[str, ...] = ()

    @property
    def vlm_meta(self) -> dict[str, Any]:
        """See `read_meta`."""
        stored = self.meta.get(META_KEY)
        return dict(stored) if isinstance(stored, Mapping) else {}

    @property
    def dense_mode(self) -> str | None:
        """Dense mode that the weights were trained in, where the file names it."""
        mode = self.vlm_meta.get('dense_mode')
        return mode if isinstance(mode, str) else None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Everything of a checkpoint file that is tensors, numbers or text; see `read_state_dict` for files and errors."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    content = read_content(path)
    entries = content if isinstance(content, Mapping) else {}
    container = next((name for name in _CONTAINERS if isinstance(entries.get(name), Mapping)), None)
    tensors = entries if container is None else entries[container]
    if not tensors:
        raise CheckpointError(f'{path} holds no state dict')
    state = {str(key).removeprefix('module.'): value for key, value in tensors.items() if key not in _NOT_WEIGHTS}
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f'{path} holds no state dict: {strange[:5]} are not tensors')
    meta, dropped = _split_meta({} if container is None else {k: v for k, v in entries.items() if k != container})
    own = _own_model(state)
    foreign = [] if own is state else [key for key in state if not key.startswith(_OWN_PREFIX)]
    return Checkpoint(path, own, meta, container, (*dropped, *foreign))


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Named tensors of a checkpoint file, containers and ``module.`` prefixes removed.

    Args:
        path: ``.safetensors``; a ``.pt``/``.pth`` file with the tensors bare or under ``model``, ``module`` or
            ``state_dict``; an OpenAI TorchScript archive; or a checkpoint of our own runners.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is damaged, would run code when unpickled, or holds no tensors.
    """
    return read_checkpoint(path).state


def read_meta(path: str | Path) -> dict[str, Any]:
    """What a checkpoint file says about its model: any of ``arch``, ``dense_mode``, ``mean``,
    ``std``, ``method`` and ``version``.

    Empty for a file that was not written by this package. Errors are those of `read_state_dict`.
    """
    return read_checkpoint(path).vlm_meta


def load_checkpoint(vlm: VLM, path: str | Path | Checkpoint, *, adopt_mode: bool = False) -> None:
    """Load a checkpoint file into a two-tower model, every key accounted for.

    Values are cast to the parameters' dtype and device. A file that was trained in another dense mode than the model's
    is loaded with a warning.

    Args:
        vlm: Model of the checkpoint's architecture.
        path: See `read_state_dict`, or what `read_checkpoint` gave.
        adopt_mode: Rather than warn, switch the model to the dense mode that the file names, 'value' if none.

    Raises:
        CheckpointError: Listing the missing, unexpected and mis-shaped keys.
    """
    checkpoint = path if isinstance(path, Checkpoint) else read_checkpoint(path)
    vlm.load_state_dict(fit_to_model(checkpoint, vlm))
    _adopt_normalization(vlm, checkpoint)
    mode = checkpoint.dense_mode or ('value' if adopt_mode else vlm.dense_mode)
    if mode == vlm.dense_mode:
        return
    if not adopt_mode:
        warnings.warn(
            f'{checkpoint.path} was trained in dense mode {mode!r}, but the model makes dense features in mode '
            f"{vlm.dense_mode!r}, which its weights were not trained for: give dense_mode='{mode}' where the config "
            f'names this model (--cfg-options model.vlm.dense_mode={mode}; or model.student, model.backbone)',
            stacklevel=2,
        )
        return
    try:
        vlm.dense_mode = vlm.visual.check_mode(mode)
    except ValueError as error:
        raise CheckpointError(f'{checkpoint.path} was trained in dense mode {mode!r}, but {error}') from error


def _adopt_normalization(vlm: VLM, checkpoint: Checkpoint) -> None:
    stored = [checkpoint.vlm_meta.get(key) for key in ('mean', 'std')]
    if all(isinstance(values, list | tuple) and len(values) == 3 for values in stored):
        vlm.visual.mean, vlm.visual.std = (tuple(map(float, values)) for values in stored)


def fit_to_model(checkpoint: Checkpoint, vlm: VLM) -> dict[str, Tensor]:
    """Tensors of a checkpoint under the names of a model and in their order; dtypes are left alone.

    Raises:
        CheckpointError: Listing the missing keys by the model's names, the others by the file's; or because the file
            says that its activation or number of heads is another.
    """
    _check_what_no_shape_shows(checkpoint, vlm)
    state, expected = rename_keys(checkpoint.state, vlm), vlm.state_dict()
    theirs: dict[str, list[str]] = {}
    for key in checkpoint.state:
        theirs.setdefault(_our_name(key, vlm) or '', []).append(key)
    theirs.pop('', None)  # buffers that are recomputed
    faults = {
        'missing': sorted(set(expected) - set(state)),
        'unexpected': sorted(key for name in set(state) - set(expected) for key in theirs[name]),
        'of another shape': [
            f'{theirs[name][0]}: {tuple(state[name].shape)} in the file, {tuple(value.shape)} in the model'
            for name, value in sorted(expected.items())
            if name in state and state[name].shape != value.shape
        ],
        'there twice': [' and '.join(keys) for keys in theirs.values() if len(keys) > 1],
    }
    if any(faults.values()):
        listings = ''.join(_listing(title, keys) for title, keys in faults.items())
        raise CheckpointError(f'{checkpoint.path} does not fit this architecture{listings}\n{_advice(checkpoint)}')
    return {name: state[name] for name in expected}


def _check_what_no_shape_shows(checkpoint: Checkpoint, vlm: VLM) -> None:
    """Compare activation and heads with what the file says of itself; OpenAI's own archives are QuickGELU's."""
    stored, ours = checkpoint.vlm_meta.get('arch'), _traceless(vlm.config)
    if isinstance(stored, Mapping):
        theirs = _traceless(stored)
    elif file_format(checkpoint.path) == 'TorchScript':
        theirs = {**ours, 'quick_gelu': True}
    else:
        return
    wrong = [f'{key}: {theirs[key]} in the file, {ours[key]} in the model' for key in ours if theirs[key] != ours[key]]
    if wrong:
        raise CheckpointError(
            f'{checkpoint.path} does not fit this architecture{_listing("different", wrong)}\n'
            "Give the arch that the file was trained with (open_clip's names of QuickGELU models end in -quickgelu)."
        )


def _traceless(config: Mapping[str, Any]) -> dict[str, Any]:
    vision, text = config.get('vision_cfg', {}), config.get('text_cfg', {})
    return {
        'quick_gelu': bool(config.get('quick_gelu', False)),
        'vision_cfg.head_width': vision.get('head_width', 64),
        'text_cfg.heads': text.get('heads', 8),
    }


def rename_keys(state: Mapping[str, Tensor], vlm: VLM) -> dict[str, Tensor]:
    """A state dict of any supported origin under our names; buffers that are recomputed are dropped.

    Our names are open_clip's of a timm tower: ``visual.trunk.*``, ``text.*``, ``logit_scale``. Open_clip's older layout
    has the text tower at the root.
    """
    named = ((_our_name(key, vlm), value) for key, value in state.items())
    return {name: value.reshape(()) if name in _SCALARS else value for name, value in named if name is not None}


def save_atomically(
    path: Path, write: Callable[[IO[bytes]], None], check: Callable[[Path], None] | None = None
) -> None:
    """Write a file beside its place and rename it, so that nobody ever sees half of it.

    Args:
        path: Where it goes; missing folders are made.
        write: Writes the content.
        check: Looks at the finished file, which keeps its suffix; if it raises, nothing takes the place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # nodes that share a folder may give out the same process numbers
    beside = path.with_name(f'.{os.getpid()}-{secrets.token_hex(4)}.{path.name}')
    try:
        with beside.open('wb') as file:
            write(file)
        if check is not None:
            check(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def file_format(path: Path) -> str:
    """'safetensors', 'TorchScript', 'PyTorch' (a zip archive) or 'PyTorch before 1.6' (a pickle, or no checkpoint)."""
    if path.suffix == '.safetensors':
        return 'safetensors'
    if not zipfile.is_zipfile(path):
        return 'PyTorch before 1.6'
    with zipfile.ZipFile(path) as archive:
        is_script = any(name.endswith('/constants.pkl') for name in archive.namelist())
    return 'TorchScript' if is_script else 'PyTorch'


def read_content(path: Path) -> object:
    """Content of a checkpoint file as it was saved: tensors, numbers and text, and stand-ins for anything else.

    Raises:
        CheckpointError: If it is damaged, or would run code when unpickled.
    """
    try:
        kind = file_format(path)
        if kind == 'safetensors':
            return _read_safetensors(path)
        if kind == 'TorchScript':  # OpenAI's own files, of which only the tensors are taken
            _check_script(path)
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


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework='pt') as file:
        header = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no mapping
    return {'state_dict': tensors, 'meta': json.loads(header[HEADER_KEY])} if HEADER_KEY in header else tensors


def _check_script(path: Path) -> None:
    """Refuse an archive that runs its script while it is opened, by which it could write files."""
    with zipfile.ZipFile(path) as archive:
        scripts = [member for member in archive.infolist() if member.filename.lower().endswith('.py')]
        if any(b'__setstate__' in archive.read(member) for member in scripts):
            raise pickle.UnpicklingError('GLOBAL __setstate__')


def _load_tensors(path: Path) -> object:
    """`torch.load` that knows tensors and the stand-ins, and nothing that other packages declared safe."""
    inert = [
        (_InertBuffer, 'mmengine.logging.history_buffer.HistoryBuffer'),
        (_inert_statistic, 'builtins.getattr'),
        *((_Inert, name) for name in _INERT_GLOBALS),
    ]
    with _safe_globals:
        declared = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(inert)
        try:
            return torch.load(path, map_location='cpu', weights_only=True)
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(declared)


def _own_model(state: dict[str, Tensor]) -> dict[str, Tensor]:
    own = {key.removeprefix(_OWN_PREFIX): value for key, value in state.items() if key.startswith(_OWN_PREFIX)}
    return own or state


def _our_name(key: str, vlm: VLM) -> str | None:
    if key.startswith('visual.'):
        inner = vlm.visual.rename_key(key.removeprefix('visual.'))
        return None if inner is None else 'visual.' + inner
    return key if key.startswith('text.') or key in _SCALARS else 'text.' + key


def _split_meta(entries: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """What stands beside the weights: numbers and text; and the names of everything else."""
    stored = entries['meta'] if isinstance(entries.get('meta'), Mapping) else {}
    meta = {str(key): value for key, value in entries.items() if isinstance(value, str | int | float)}
    meta |= {str(key): value for key, value in stored.items() if _is_plain(value)}
    others = [str(key) for key in entries if str(key) not in meta and key != 'meta']
    return meta, others + [f'meta.{key}' for key in stored if str(key) not in meta]


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def _advice(checkpoint: Checkpoint) -> str:
    if any(key.startswith(_OTHER_MODELS) for key in checkpoint.state):
        return 'This is the file of a whole detector or segmentor: give it to tools/test.py with its config.'
    return 'Give the arch that the file was trained with; tools/misc/describe_checkpoint.py tells what it holds.'


def _listing(title: str, keys: list[str]) -> str:
    shown = ''.join(f'\n    {key}' for key in keys[:20])
    more = f'\n    ... and {len(keys) - 20} more' if len(keys) > 20 else ''
    return f'\n  {len(keys)} {title}:{shown}{more}' if keys else ''

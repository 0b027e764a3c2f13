"""Class embeddings of a vocabulary: computed by a text tower, cached by content, or read from a file with checks."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoints import save_atomically
from .digest import state_digest
from .prompts import fill_template, get_templates
from .vocabulary import Vocabulary, first_difference

if TYPE_CHECKING:
    from .model import VLM

_CHUNK = 512  # prompts per pass through the text tower
# DenseVLM's released embeddings have norms of 0.89 to 0.96, the other released ones of 1.
_USUAL_NORMS = (0.5, 1.5)


def cache_dir() -> Path:
    """Where computed embeddings are kept: ``$DENSEVLM_CACHE``, else ``$XDG_CACHE_HOME/densevlm_mm``."""
    home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(os.environ.get('DENSEVLM_CACHE') or Path(home) / 'densevlm_mm')


@torch.no_grad()
def compute_class_embeddings(
    vlm: VLM, names: Sequence[str] | Vocabulary, templates: str | Sequence[str] = 'vild'
) -> Tensor:
    """Mean over prompts of the L2-normalised text embeddings, one row per class.

    The mean is left as it is: DenseVLM's released embeddings have norms of 0.89 to 0.95, which act as a temperature per
    class. Normalise the rows for plain cosines.

    Args:
        vlm: Model with a text tower and a tokenizer.
        names: K class names; or a vocabulary, where the mean of a class is that over all its synonyms.
        templates: See `prompts.get_templates`.

    Returns:
        ``(K, C)`` fp32 on the model's device.
    """
    if isinstance(names, Vocabulary):
        phrases, classes = names.expanded()
        return average_synonyms(compute_class_embeddings(vlm, phrases, templates), classes)
    prompts = [fill_template(template, name) for name in names for template in get_templates(templates)]
    chunks = [prompts[i : i + _CHUNK] for i in range(0, len(prompts), _CHUNK)]
    # what is cached may not depend on the precision in which somebody happens to evaluate
    with torch.autocast(vlm.device.type, enabled=False):
        embeddings = torch.cat([vlm.encode_text(vlm.tokenize(chunk)).float() for chunk in chunks])
    return embeddings.unflatten(0, (len(names), -1)).mean(1)


def average_synonyms(embeddings: Tensor, classes: Sequence[int]) -> Tensor:
    """Mean embedding of every class over its phrases.

    Args:
        embeddings: ``(P, C)``, one row per phrase.
        classes: P class indices that name each of 0..K-1, as `Vocabulary.expanded` gives them.

    Returns:
        ``(K, C)``.
    """
    index = torch.tensor(classes, device=embeddings.device)
    counts = torch.bincount(index)
    sums = embeddings.new_zeros(len(counts), embeddings.shape[1]).index_add_(0, index, embeddings)
    return sums / counts[:, None]


def class_embeddings(
    vlm: VLM, names: Sequence[str] | Vocabulary, templates: str | Sequence[str] = 'vild', *, normalize: bool = False
) -> Tensor:
    """`compute_class_embeddings` through a cache on disk, keyed by the content of everything that enters.

    To keep the synonyms of a vocabulary apart, ask for the phrases of `Vocabulary.expanded`.

    Args:
        vlm: Model with a text tower and a tokenizer.
        names: K class names; or a vocabulary, where the mean of a class is that over all its synonyms.
        templates: See `prompts.get_templates`.
        normalize: L2-normalise the rows.

    Returns:
        ``(K, C)`` fp32 on the model's device.
    """
    if isinstance(names, Vocabulary):
        phrases, classes = names.expanded()
        embeddings = average_synonyms(class_embeddings(vlm, phrases, templates), classes)
        return F.normalize(embeddings, dim=-1) if normalize else embeddings
    key = _content_key(vlm, names, get_templates(templates))
    path = cache_dir() / 'text_embeddings' / f'{key}.npy'
    embeddings = _read_cached(path, (len(names), vlm.embed_dim))
    if embeddings is None:
        embeddings = compute_class_embeddings(vlm, names, templates).cpu()
        try:
            save_atomically(path, lambda file: np.save(file, embeddings.numpy()))
        except OSError as error:
            warnings.warn(f'class embeddings are not cached ({error}); set DENSEVLM_CACHE to a folder', stacklevel=2)
    embeddings = embeddings.to(vlm.device)
    return F.normalize(embeddings, dim=-1) if normalize else embeddings


def load_class_embeddings(path: str | Path, names: Sequence[str], embed_dim: int) -> Tensor:
    """Class embeddings from a file made elsewhere.

    Args:
        path: ``.npy`` with a ``(K, C)`` array, or ``.pt`` with such a tensor or ``{'embeddings': tensor, 'names':
            [...]}``; stored names are compared with the vocabulary.
        names: The K class names that the rows must stand for.
        embed_dim: Width C of the model's text space.

    Returns:
        ``(K, C)`` fp32, rows as stored.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If number of rows, width, names or finiteness do not fit, or a row is zero; the message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'class embedding file {path} does not exist')
    try:
        stored = np.load(path) if path.suffix == '.npy' else torch.load(path, map_location='cpu', weights_only=True)
        stored = stored if isinstance(stored, dict) else {'embeddings': stored}
        embeddings = torch.as_tensor(stored['embeddings']).float()
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as class embeddings: make it an array (.npy), a tensor or {{'embeddings': tensor}}"
        ) from error
    stored_names = stored.get('names')
    if embeddings.ndim != 2 or embeddings.shape[0] != len(names):
        raise ValueError(f'{path} has shape {tuple(embeddings.shape)}, but the vocabulary has {len(names)} classes')
    if embeddings.shape[1] != embed_dim:
        raise ValueError(f"{path} has width {embeddings.shape[1]}, but this model's text space has {embed_dim}")
    difference = None if stored_names is None else first_difference(stored_names, names)
    if difference:
        raise ValueError(f'{path} was made for other classes: {difference}')
    if not torch.isfinite(embeddings).all():
        raise ValueError(f'{path} holds values that are not finite')
    _check_norms(path, embeddings.norm(dim=-1), names)
    return embeddings


def _check_norms(path: Path, norms: Tensor, names: Sequence[str]) -> None:
    zero = [name for name, norm in zip(names, norms.tolist(), strict=True) if norm == 0]
    if zero:
        raise ValueError(f'{path} has zero embeddings of {zero[:5]}; compute them anew or leave these classes out')
    low, high = norms.min().item(), norms.max().item()
    if low < _USUAL_NORMS[0] or high > _USUAL_NORMS[1]:
        warnings.warn(
            f'{path} has rows with norms from {low:.3g} to {high:.3g}, far from 1. A norm acts as the temperature of '
            'its class: if that is not meant, store the rows normalised',
            stacklevel=3,
        )


def _content_key(vlm: VLM, names: Sequence[str], templates: Sequence[str]) -> str:
    prompts = [[fill_template(template, name) for template in templates] for name in names]
    digest = hashlib.sha256(json.dumps([prompts, vlm.text_config]).encode())
    digest.update(repr(vlm.tokenize([fill_template(t, n) for n in names[:1] for t in templates]).tolist()).encode())
    digest.update(state_digest(vlm.text.state_dict()).encode())
    return digest.hexdigest()[:32]


def _read_cached(path: Path, shape: tuple[int, int]) -> Tensor | None:
    try:
        stored = torch.from_numpy(np.load(path))
    except (OSError, ValueError, EOFError):
        return None  # absent or damaged: compute it again
    return stored if tuple(stored.shape) == shape else None

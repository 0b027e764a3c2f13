"""`load_vlm`: one call from a name and a file to a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip import list_pretrained_tags_by_model
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg

from .architectures import resolve_arch
from .checkpoints import load_checkpoint
from .model import VLM

_HUB = 'hf-hub:'


def load_vlm(
    arch: str | Mapping[str, Any],
    checkpoint: str | Path | None = None,
    device: str | torch.device = 'cpu',
    dtype: torch.dtype | str | None = None,
    dense_mode: str | None = None,
) -> VLM:
    """Build a two-tower model, load its weights strictly and put it in eval mode.

    Args:
        arch: 'EVA02-CLIP-B-16', 'EVA02-CLIP-L-14-336', any open_clip name with a dense path such as
            'ViT-B-16-quickgelu', 'ViT-B-16-SigLIP2', 'RN50' or 'convnext_base_w', or a mapping ``{embed_dim,
            vision_cfg, text_cfg[, quick_gelu, init_logit_bias]}`` in the schema of EVA-CLIP and open_clip.
        checkpoint: A local file (see `checkpoints.read_state_dict`); a pretrained tag of open_clip for this arch such
            as 'openai'; ``hf-hub:owner/repo``; or None for random weights.
        device: Where the model goes.
        dtype: Dtype of the weights, a torch dtype or its name such as 'bfloat16'; None keeps fp32.
        dense_mode: How the last block makes dense features; None takes the mode that the checkpoint was trained in,
            where it names one, else 'value' (DenseVLM, CLIPSelf).

    Raises:
        FileNotFoundError: If the checkpoint is neither a file nor a known tag.
        CheckpointError: If the file is damaged, holds code, or does not fit the architecture.
        ValueError: For an unknown arch, key, dtype or dense mode.
    """
    vlm = VLM(arch, dense_mode=dense_mode or 'value')
    if checkpoint is not None:
        load_checkpoint(vlm, locate_checkpoint(arch, checkpoint), adopt_mode=dense_mode is None)
        tag = pretrained_config(arch, checkpoint)
        if 'mean' in tag:
            vlm.visual.mean, vlm.visual.std = tuple(tag['mean']), tuple(tag['std'])
    return vlm.to(device=device, dtype=resolve_dtype(dtype)).eval()


def locate_checkpoint(arch: str | Mapping[str, Any], checkpoint: str | Path) -> Path:
    """Local path of a checkpoint; a tag or hub name is fetched into open_clip's cache.

    Raises:
        FileNotFoundError: If it is neither a file nor a known tag.
        ValueError: If the tag's weights were trained with another activation than the arch has.
    """
    if Path(checkpoint).is_file():
        return Path(checkpoint)
    name = str(checkpoint)
    if name.startswith(_HUB):
        return Path(download_pretrained_from_hf(name[len(_HUB) :]))
    pretrained = pretrained_config(arch, name)
    if pretrained:
        if pretrained.get('quick_gelu', False) != resolve_arch(arch).get('quick_gelu', False):
            raise ValueError(f"{arch}'s {name!r} has the other GELU: add or remove '-quickgelu' in the arch's name")
        return Path(download_pretrained(pretrained))
    tags = _tags(arch)
    fault = 'is a folder' if Path(checkpoint).is_dir() else 'does not exist'
    hint = f', nor a pretrained tag of {arch}: {tags}' if tags else ''
    raise FileNotFoundError(f'checkpoint {name} {fault}{hint}')


def pretrained_config(arch: str | Mapping[str, Any], checkpoint: str | Path) -> dict[str, Any]:
    """What open_clip knows of a pretrained tag, its images' ``mean`` and ``std`` among it; empty for anything else."""
    name = str(checkpoint)
    if Path(checkpoint).is_file() or name not in _tags(arch):
        return {}
    return get_pretrained_cfg(arch, name)


def _tags(arch: str | Mapping[str, Any]) -> list[str]:
    return list_pretrained_tags_by_model(arch) if isinstance(arch, str) else []


def resolve_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Floating torch dtype of a dtype or its name.

    Raises:
        ValueError: If it is no floating dtype.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f'{dtype!r} is no floating dtype; use float32, bfloat16 or float16')
    return found

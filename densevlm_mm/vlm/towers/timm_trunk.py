"""open_clip's adapter around timm's models."""

from __future__ import annotations

from collections.abc import Mapping

from open_clip import CLIPVisionCfg
from open_clip.timm_model import TimmModel

from .base import check_known_keys
from .openai import KNOWN_KEYS


def build_timm_model(embed_dim: int, vision_cfg: Mapping) -> TimmModel:
    """open_clip's ``trunk`` and ``head`` of a timm model, randomly initialised whatever the config says.

    Args:
        embed_dim: Channels of the image-text space.
        vision_cfg: ``vision_cfg`` of open_clip's JSON model configs with a ``timm_model_name``.

    Raises:
        ValueError: For a key that is not in that schema.
    """
    check_known_keys(vision_cfg, KNOWN_KEYS, 'vision_cfg of a timm tower')
    cfg = CLIPVisionCfg(**vision_cfg)
    return TimmModel(
        cfg.timm_model_name,
        embed_dim,
        image_size=cfg.image_size,
        pool=cfg.timm_pool,
        proj=cfg.timm_proj,
        proj_bias=cfg.timm_proj_bias,
        drop=cfg.timm_drop,
        drop_path=cfg.timm_drop_path,
    )

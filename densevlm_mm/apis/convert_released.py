"""What the tools that convert released detectors and segmentors have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import DefaultScope

from densevlm_mm.vlm.checkpoint_formats import Written


def parse_conversion(argv: list[str] | None, description: str, kind: str, shared: str) -> argparse.Namespace:
    """Arguments of a conversion: ``source``, ``config``, ``out``, ``cfg_options``.

    Args:
        argv: Words of the command line; None for those of this process.
        description: Shown by ``--help``.
        kind: What is converted, such as 'detector'.
        shared: What its config must have in common with the released one.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('source', help=f'checkpoint of the released {kind}')
    parser.add_argument('config', help=f'config of our {kind}: the same {shared}')
    parser.add_argument('-o', '--out', required=True, help='file to be made: .pth or .pt')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='override entries, key=value')
    return parser.parse_args(argv)


def convert_released(
    args: argparse.Namespace, convert: Callable[[str | Path, str | Path, Mapping[str, Any]], Written], scope: str
) -> Written:
    """Convert into the model of a config, whose own files need not exist.

    Args:
        args: Of `parse_conversion`.
        convert: Takes source, target and the config of the model.
        scope: Registry of a config that names none.

    Raises:
        ValueError: For a config without a model, and what ``convert`` refuses.
        OSError: For files that cannot be read or written.
    """
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    if 'model' not in cfg:
        raise ValueError(f'{args.config} has no model; give the config that the checkpoint is to be loaded into')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', scope)):
        return convert(args.source, args.out, cfg.model)

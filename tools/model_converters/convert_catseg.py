#!/usr/bin/env python
"""Convert a checkpoint of the released CAT-Seg (detectron2) to our segmentor.

The released names come from a description of the released code; see docs/checkpoints.md.

Example:
    python tools/model_converters/convert_catseg.py RELEASED.pth CONFIG.py -o checkpoints/catseg.pth
"""

from __future__ import annotations

import argparse
import sys

from mmengine.config import Config, DictAction
from mmengine.registry import DefaultScope

from densevlm_mm.seg import convert_catseg_checkpoint
from densevlm_mm.vlm.checkpoint_formats import Written


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', help='checkpoint of the released segmentor')
    parser.add_argument('config', help='config of our segmentor: the same towers and aggregator')
    parser.add_argument('-o', '--out', required=True, help='file to be made: .pth or .pt')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='override entries, key=value')
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> Written:
    """Convert into the segmentor of the config, whose own files need not exist."""
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    if 'model' not in cfg:
        raise ValueError(f'{args.config} has no model; give the config of a segmentor')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmseg')):
        return convert_catseg_checkpoint(args.source, args.out, cfg.model)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when the file is there, 2 when it cannot be made."""
    args = parse_args(argv)
    try:
        written = convert(args)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{written.path}: {written.tensors} tensors, loaded back strictly')
    print(f'left out: {", ".join(written.dropped) or "nothing"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())

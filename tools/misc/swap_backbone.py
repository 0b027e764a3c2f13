#!/usr/bin/env python
"""Write a config like another one of MMDetection or MMSegmentation, with a CLIP's vision tower as its backbone.

Examples:
    python tools/misc/swap_backbone.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py -o my_retinanet.py
    python tools/misc/swap_backbone.py my_upernet_r50.py -o my_upernet.py --checkpoint densevlm_vitb16.pth --trainable 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from densevlm_mm.apis import swap_backbone
from densevlm_mm.compat import CompatError

ARCH = 'EVA02-CLIP-B-16'
CHECKPOINT = 'checkpoints/densevlm_coco_6_save6_512_eva_vib16_12layers.pt'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='path of a config, or a name such as mmdet::fcos/fcos_r50-caffe_fpn_1x_coco.py')
    parser.add_argument('-o', '--out', required=True, help='.py file to be made')
    parser.add_argument('--arch', default=ARCH, help=f'name or .json file of the model config (default: {ARCH})')
    parser.add_argument('--checkpoint', help=f'weights of the tower (default for {ARCH}: {CHECKPOINT})')
    parser.add_argument('--out-indices', type=int, nargs='+', metavar='BLOCK', help='blocks that become the levels')
    parser.add_argument('--trainable', type=int, metavar='BLOCKS', help='how many blocks train (default: none)')
    parser.add_argument('--no-check', action='store_false', dest='check', help='do not run the result on a small image')
    parser.add_argument('--force', action='store_true', help='overwrite the file')
    args = parser.parse_args(argv)
    if args.checkpoint is None:
        if args.arch != ARCH:
            parser.error(f'--arch {args.arch} needs its --checkpoint')
        args.checkpoint = CHECKPOINT
    return args


def describe(value: Any) -> str:
    """A value in a few words: a part of a model by its type."""
    return value.get('type', '{}') if isinstance(value, Mapping) else repr(value)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when the config is there, 2 when it cannot be made."""
    args = parse_args(argv)
    try:
        swap = swap_backbone(
            args.config,
            args.out,
            arch=args.arch,
            checkpoint=args.checkpoint,
            out_indices=args.out_indices,
            trainable=args.trainable,
            check=args.check,
            overwrite=args.force,
        )
    except (ValueError, OSError, CompatError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{args.out}: {args.config} with these changes, {"which run" if args.check else "not run"}')
    for key, old, new in swap.changes:
        print(f'  {key}: {describe(old)} -> {describe(new)}')
    for key, value in swap.left.items():
        print(f'  {key}: {value!r} stays, since it is not of the backbone')
    for note in swap.notes:
        print(f'note: {note}')
    return 0


if __name__ == '__main__':
    sys.exit(main())

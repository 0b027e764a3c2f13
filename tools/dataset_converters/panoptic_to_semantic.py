#!/usr/bin/env python
"""Make label maps for semantic segmentation from annotations in COCO's panoptic format.

Labels are positions among the categories of the annotation file, which therefore is also the vocabulary, or in the
vocabulary given. Label maps are PNGs of 8 bits in which 255 is ignored (with more than 255 classes, 16 bits and 65535).

Examples:
    python tools/dataset_converters/panoptic_to_semantic.py data/miniworld/annotations/panoptic_val2017.json
    python tools/dataset_converters/panoptic_to_semantic.py data/coco/annotations/panoptic_val2017.json \\
        --vocabulary coco_panoptic -o data/coco/annotations/semantic_val2017
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from densevlm_mm.datasets.semantic_maps import convert_panoptic
from densevlm_mm.vlm import build_vocabulary


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('annotations', type=Path, help='annotation file in the panoptic format')
    parser.add_argument('--maps', type=Path, help='folder of the panoptic maps (default: named as the annotation file)')
    parser.add_argument(
        '-o', '--out', type=Path, help='folder for the label maps (default: as --maps, with "semantic" for "panoptic")'
    )
    parser.add_argument('--vocabulary', help='name or file, see docs/vocabularies.md (default: all categories)')
    args = parser.parse_args(argv)
    args.maps = args.maps or args.annotations.with_suffix('')
    args.out = args.out or args.maps.with_name(args.maps.name.replace('panoptic', 'semantic'))
    if args.out.resolve() == args.maps.resolve():
        parser.error(f'{args.out} holds the panoptic maps: give another folder for the label maps by --out')
    return args


def show_progress(done: int, total: int) -> None:
    """Keep one line of the terminal up to date."""
    print(f'\r{done}/{total} images', end='\n' if done == total else '', file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the label maps are there, 2 when they cannot be made."""
    args = parse_args(argv)
    try:
        vocabulary = build_vocabulary(args.vocabulary) if args.vocabulary else None
        count = convert_panoptic(args.annotations, args.maps, args.out, vocabulary=vocabulary, progress=show_progress)
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{args.out}: {count} label maps')
    return 0


if __name__ == '__main__':
    sys.exit(main())

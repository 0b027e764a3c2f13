#!/usr/bin/env python
"""Make the annotation files of open-vocabulary detection on COCO: labels of some classes go, all categories stay.

Examples:
    python tools/dataset_converters/ov_coco.py data/coco/annotations/instances_train2017.json \
        -o data/coco/annotations/instances_train2017_base.json --keep base
    python tools/dataset_converters/ov_coco.py data/coco/annotations/instances_val2017.json \
        -o data/coco/annotations/instances_val2017_all.json --keep all
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from densevlm_mm.datasets.open_vocabulary import convert_file
from densevlm_mm.vlm import build_vocabulary


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('source', type=Path, help='COCO-style instance file that lists every class of the vocabulary')
    parser.add_argument('-o', '--out', type=Path, required=True, help='file to be written')
    parser.add_argument('--vocabulary', default='ov_coco', help='name or file, see docs/vocabularies.md')
    parser.add_argument('--keep', choices=['base', 'all'], required=True, help='labels: of base, or base and novel')
    parser.add_argument(
        '--images',
        choices=['labelled', 'all', 'complete'],
        default='labelled',
        help='those that a label is left of (as published), all, or those that lost none',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when the file is there, 2 when it cannot be written."""
    args = parse_args(argv)
    try:
        vocabulary = build_vocabulary(args.vocabulary)
        print(convert_file(args.source, args.out, vocabulary, keep=args.keep, images=args.images))
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())

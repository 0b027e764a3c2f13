#!/usr/bin/env python
"""Make the training file of open-vocabulary detection on LVIS v1: labels of rare classes go, all 1203 categories stay.

Images that are left without a label stay too, as published, and so does what LVIS says of whole images.

Example:
    python tools/dataset_converters/ov_lvis.py data/lvis/annotations/lvis_v1_train.json \
        -o data/lvis/annotations/lvis_v1_train_base.json
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
    parser.add_argument('source', type=Path, help="LVIS v1's annotation file")
    parser.add_argument('-o', '--out', type=Path, required=True, help='file to be written')
    parser.add_argument(
        '--vocabulary', default='ov_lvis', help='name or file; base means frequent and common in the default one'
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when the file is there, 2 when it cannot be written."""
    args = parse_args(argv)
    try:
        print(convert_file(args.source, args.out, build_vocabulary(args.vocabulary), keep='base', images='all'))
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())

#!/usr/bin/env python
"""Make the file to hand out from a training checkpoint: weights and what model they are of, under a hashed name.

Example:
    python tools/model_converters/publish_model.py work_dirs/densevlm_vitb16_coco/iter_11088.pth densevlm_vitb16.pth
"""

from __future__ import annotations

import argparse
import sys

from densevlm_mm.vlm import publish_checkpoint


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', help='training checkpoint; of a distiller, the student is published')
    parser.add_argument('target', help='file to be made; 8 digits of its SHA-256 are appended to its name')
    parser.add_argument('--arch', help="name or .json file of the model config (default: the source's own)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when the file is there, 2 when it cannot be made."""
    args = parse_args(argv)
    try:
        written = publish_checkpoint(args.source, args.target, args.arch)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{written.path}: {written.tensors} tensors, read back and equal')
    print(f'left out: {", ".join(written.dropped) or "nothing"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())

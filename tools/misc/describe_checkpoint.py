#!/usr/bin/env python
"""Tell what a checkpoint file is: format, towers, sizes, dtype, dense mode, matching architectures, hash.

Example:
    python tools/misc/describe_checkpoint.py checkpoints/EVA02_CLIP_B_psz16_s8B.pt
"""

from __future__ import annotations

import argparse
import json
import sys

from densevlm_mm.vlm import describe_checkpoint
from densevlm_mm.vlm.describe import format_description


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('file', help='any checkpoint; reading it runs no code that it may hold')
    parser.add_argument('--json', action='store_true', help='everything, for programs')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 2 when the file cannot be read."""
    args = parse_args(argv)
    try:
        description = describe_checkpoint(args.file)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(json.dumps(description, indent=2) if args.json else format_description(description))
    return 0


if __name__ == '__main__':
    sys.exit(main())

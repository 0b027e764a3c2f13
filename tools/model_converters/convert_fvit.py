#!/usr/bin/env python
"""Convert a checkpoint of the released F-ViT (MMDetection 2.x) to our detector.

The released names come from a description of the released code; see docs/checkpoints.md.

Example:
    python tools/model_converters/convert_fvit.py RELEASED.pth CONFIG.py -o checkpoints/fvit.pth
"""

from __future__ import annotations

import argparse
import sys

from densevlm_mm.apis.convert_released import convert_released, parse_conversion
from densevlm_mm.det import convert_fvit_checkpoint


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    return parse_conversion(argv, __doc__.splitlines()[0], 'detector', 'layers, the same classes in the same order')


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when the file is there, 2 when it cannot be made."""
    args = parse_args(argv)
    try:
        written = convert_released(args, convert_fvit_checkpoint, 'mmdet')
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{written.path}: {written.tensors} tensors, loaded back strictly')
    print(f'left out: {", ".join(written.dropped) or "nothing"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())

#!/usr/bin/env python
"""Convert a checkpoint of a CLIP: to our format, to open_clip's, or to that of DenseVLM, CLIPSelf and EVA-CLIP.

Examples:
    python tools/model_converters/convert_vlm.py EVA02_CLIP_B_psz16_s8B.pt ours.pth --arch EVA02-CLIP-B-16 --to ours
    python tools/model_converters/convert_vlm.py ours.pth open_clip.safetensors --to open_clip --dtype float16
    python tools/model_converters/convert_vlm.py ours.pth reference.pt --to reference
"""

from __future__ import annotations

import argparse
import sys

from densevlm_mm.vlm import convert_checkpoint
from densevlm_mm.vlm.checkpoint_formats import FORMATS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', help='any file that load_vlm accepts, or a training checkpoint')
    parser.add_argument('target', help='file to be made: .pth, .pt or .safetensors')
    parser.add_argument('--arch', help="name or .json file of the model config (default: the source's own)")
    parser.add_argument('--to', required=True, choices=FORMATS, help='format of the target')
    parser.add_argument('--dtype', choices=['keep', 'float32', 'float16'], default='keep', help='of the weights')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when the file is there, 2 when it cannot be made."""
    args = parse_args(argv)
    dtype = None if args.dtype == 'keep' else args.dtype
    try:
        written = convert_checkpoint(args.source, args.target, args.arch, to=args.to, dtype=dtype)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{written.path}: {written.tensors} tensors, read back and equal')
    if written.dropped:
        print(f'left out: {", ".join(written.dropped)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())

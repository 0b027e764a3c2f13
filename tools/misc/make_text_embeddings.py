#!/usr/bin/env python
"""Store the class embeddings of a vocabulary, for whoever has no text tower at hand.

Example:
    python tools/misc/make_text_embeddings.py --arch EVA02-CLIP-B-16 --checkpoint checkpoints/densevlm_vitb16.pt \
        --vocabulary ov_coco -o data/text_embeddings/ov_coco_vitb16.pt --background
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from densevlm_mm.vlm import Vocabulary, build_vocabulary, class_embeddings, load_class_embeddings, load_vlm
from densevlm_mm.vlm.checkpoints import save_atomically
from densevlm_mm.vlm.vocabulary import BACKGROUND


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('--arch', required=True, help='name or .json file of the model config')
    parser.add_argument('--checkpoint', required=True, help='its weights, with the text tower')
    parser.add_argument('--vocabulary', required=True, help='name or file, see docs/vocabularies.md')
    parser.add_argument('--templates', default='vild', help='prompt templates: a name, or a .txt with one a line')
    parser.add_argument(
        '--background',
        nargs='*',
        metavar='WORD',
        help='add a last row, "background", as F-ViT needs it: the mean of these words, by default of that word alone',
    )
    parser.add_argument('-o', '--out', type=Path, required=True, help='file to be written, .pt')
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args(argv)
    if args.out.suffix != '.pt':
        parser.error(f'{args.out} must end in .pt: other formats keep no names')
    return args


def make(args: argparse.Namespace) -> str:
    """Write the file, read it back, and say what it holds."""
    vocabulary = build_vocabulary(args.vocabulary)
    arch = json.loads(Path(args.arch).read_text(encoding='utf-8')) if args.arch.endswith('.json') else args.arch
    vlm = load_vlm(arch, args.checkpoint, args.device)
    parts = [vocabulary]
    if args.background is not None:
        parts.append(Vocabulary((BACKGROUND,), (False,), synonyms=(tuple(args.background),)))
    # means as they are: whoever wants unit vectors can have them, but not the other way round
    embeddings = torch.cat([class_embeddings(vlm, part, args.templates) for part in parts]).cpu()
    names = [name for part in parts for name in part.names]
    save_atomically(
        args.out,
        lambda file: torch.save({'embeddings': embeddings, 'names': names}, file),
        lambda path: load_class_embeddings(path, names, vlm.embed_dim),
    )
    return f'{args.out}: {len(names)} embeddings of width {vlm.embed_dim}'


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when the file is there, 2 when it cannot be made."""
    args = parse_args(argv)
    try:
        print(make(args))
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())

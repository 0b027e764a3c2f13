"""Generate a mini world: a small data set in COCO's file formats on which tiny CLIPs learn.

Example:
    python tools/dataset_converters/make_miniworld.py data/miniworld --train 4000 --val 400 --size 64 --seed 0
"""

from __future__ import annotations

import argparse
import os
import sys

from densevlm_mm.datasets.miniworld import generate_miniworld


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the names are those of ``generate_miniworld``."""
    parser = argparse.ArgumentParser(
        description='Generate a mini world in the layout of COCO 2017.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('root', help='folder of the data set, to be created')
    parser.add_argument('--train', dest='num_train', type=int, default=4000, help='images in train2017')
    parser.add_argument('--val', dest='num_val', type=int, default=400, help='images in val2017')
    parser.add_argument('--size', type=int, nargs='+', default=[64], help='side, or width and height')
    parser.add_argument('--seed', type=int, default=0, help='seed of the whole world')
    parser.add_argument('--oblong', type=float, default=0.25, help='share of images with one side cut to 3/4')
    parser.add_argument('--texture-noise', type=float, default=0.5, help='how confusable the stuff is, 0..1')
    parser.add_argument('--stuff-mention', type=float, default=0.2, help='share of stuff that captions name')
    parser.add_argument('--captions-per-image', type=int, default=1, help='1..10')
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='processes')
    parser.add_argument('--force', action='store_true', help='replace a mini world that has other options')
    args = parser.parse_args(argv)
    if len(args.size) > 2:
        parser.error('--size takes one side, or a width and a height')
    args.size = args.size[0] if len(args.size) == 1 else tuple(args.size)
    return args


def show_progress(done: int, total: int) -> None:
    """Keep one line of the terminal up to date."""
    print(f'\r{done}/{total} images', end='\n' if done == total else '', file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when the data set is there, 2 when it cannot be written."""
    args = parse_args(argv)
    try:
        written = generate_miniworld(progress=show_progress, **vars(args))
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{args.root}: {"written" if written else "up to date"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())

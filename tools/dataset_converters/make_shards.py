"""Pack an image folder into tar files in the manner of SA-1B, for densevlm_mm.TarImageDataset.

Example:
    python tools/dataset_converters/make_shards.py data/images data/shards --per-shard 10000
"""

from __future__ import annotations

import argparse
import sys

from densevlm_mm.datasets.tar_shards import write_shards


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the names are those of ``write_shards``."""
    parser = argparse.ArgumentParser(
        description='Pack an image folder into tar files.', formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('folder', help='folder with images, at any depth')
    parser.add_argument('out', help='folder for the tar files, to be created')
    parser.add_argument('--per-shard', type=int, default=1000, help='images per tar file')
    parser.add_argument('--prefix', default='sa_', help='beginning of the names, before six digits and .tar')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when the tar files are there, 2 when they cannot be written."""
    args = parse_args(argv)
    try:
        shards = write_shards(**vars(args))
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{args.out}: {len(shards)} tar files written')
    return 0


if __name__ == '__main__':
    sys.exit(main())

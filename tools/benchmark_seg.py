#!/usr/bin/env python
"""Score a model on many segmentation benchmarks: one command, one table.

python tools/benchmark_seg.py --suite training-free-8 --checkpoint checkpoints/EVA02_CLIP_B_psz16_s8B.pt
python tools/benchmark_seg.py --suite catseg-6 --config configs/catseg/NAME.py --checkpoint work_dirs/NAME/model.pth
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.device import get_device, is_cuda_available
from mmengine.dist import init_dist, is_main_process

from densevlm_mm.apis import close_process_group
from densevlm_mm.apis.benchmark_seg import (
    SUITES,
    Candidate,
    Options,
    build_dataset,
    configured_candidate,
    run_benchmark,
    training_free_candidate,
)
from densevlm_mm.apis.benchmark_seg_report import as_text, describe_run, write_report
from densevlm_mm.seg.protocols import Protocol, list_protocols, read_protocol

PROTOCOLS = Path(__file__).parents[1] / 'configs' / 'training_free' / 'protocols'
SECONDS_BETWEEN_LINES = 20
PATIENCE = 6 * 3600  # seconds that a process waits for others, whose images may be larger


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--suite', choices=SUITES, default='training-free-8', help='which benchmarks')
    parser.add_argument('--benchmarks', nargs='+', metavar='NAME', help='these benchmarks instead of a suite')
    parser.add_argument('--checkpoint', required=True, help='weights: of a CLIP, or of the model of --config')
    parser.add_argument('--arch', help='of the CLIP (default: what its file says, else EVA02-CLIP-B-16)')
    parser.add_argument('--config', help='of a segmentor such as CAT-Seg (default: none, a CLIP is scored as it is)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='override entries, key=value')
    parser.add_argument('--method', help='settings and names (default: densevlm; catseg with --config)')
    parser.add_argument('--dense-mode', help="of the CLIP (default: the method's, else that of its file)")
    parser.add_argument('--data-root', type=Path, default=Path('data'), help='folder of all data sets (default: data)')
    parser.add_argument(
        '--out',
        type=Path,
        help='folder of tables and counts (default: below work_dirs/benchmark_seg, one for these weights)',
    )
    parser.add_argument('--limit', type=int, help='only the first so many images of each data set')
    parser.add_argument('--batch-size', type=int, default=1, help='images at a time, per process')
    parser.add_argument('--num-workers', type=int, default=2, help='processes that load images, per process')
    parser.add_argument('--device', help='such as cpu or cuda:1 (default: a GPU, if there is one)')
    parser.add_argument('--strict', action='store_true', help='missing data is an error, before anything starts')
    parser.add_argument('--protocols', type=Path, default=PROTOCOLS, help='folder of other protocols')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by some launchers')
    args = parser.parse_args()
    _check(parser, args)
    args.method = args.method or ('catseg' if args.config else 'densevlm')
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    for name in ('limit', 'batch_size'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1, got {getattr(args, name)}')
    if args.config and (args.arch or args.dense_mode):
        parser.error('--arch and --dense-mode are for a CLIP as it is; with --config use --cfg-options')
    known = list_protocols(args.protocols, 'data')
    unknown = [name for name in args.benchmarks or () if name not in known]
    if unknown:
        parser.error(f'there are no benchmarks {unknown}; there are {known}')


def find_missing(protocols: list[Protocol], data_root: Path) -> list[dict]:
    """Benchmarks without data, with what is missing and how to prepare it."""
    entries = []
    for protocol in protocols:
        missing = [f'no {path}' for path in protocol.missing(data_root)] or try_dataset(protocol, data_root)
        if missing:
            entries.append({'benchmark': protocol.benchmark, 'missing': missing, 'prepare': protocol.prepare})
    return entries


def try_dataset(protocol: Protocol, data_root: Path) -> list[str]:
    """What is wrong with a data set whose folders are there; they may hold other files than converted ones."""
    try:
        build_dataset(protocol, data_root)
    except FileNotFoundError as error:
        return [str(error)]
    return []


def describe_missing(entries: list[dict]) -> str:
    lines = [f'{entry["benchmark"]}: {", ".join(entry["missing"])}\n    {entry["prepare"]}' for entry in entries]
    return '\n'.join(lines)


def default_out(args: argparse.Namespace, digest: str) -> Path:
    """Folder by weights, of which other ones may have the same name, and by method."""
    parts = [Path(args.checkpoint).stem, digest[:8], args.method, *filter(None, [args.dense_mode])]
    return Path('work_dirs') / 'benchmark_seg' / '_'.join(parts)


def build_candidate(args: argparse.Namespace, protocol: Protocol) -> Candidate:
    device = args.device or get_device()
    if args.config is None:
        return training_free_candidate(
            args.checkpoint, protocol, arch=args.arch, dense_mode=args.dense_mode, device=device
        )
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options)
    return configured_candidate(config, args.checkpoint, device=device)


class Lines:
    """Prints how far a benchmark is, now and then."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, benchmark: str, done: int, total: int) -> None:
        if done == total or time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            print(f'{benchmark}: {done} of {total} images', flush=True)


def run(args: argparse.Namespace) -> None:
    names = args.benchmarks or SUITES[args.suite]
    protocols = [read_protocol(args.protocols, args.method, name) for name in dict.fromkeys(names)]
    absent = find_missing(protocols, args.data_root)
    if absent and args.strict:
        raise SystemExit(f'data sets are missing:\n{describe_missing(absent)}')
    results = {entry['benchmark']: entry for entry in absent}
    present = [protocol for protocol in protocols if protocol.benchmark not in results]
    if not present:
        print(f'nothing to do, all data sets are missing:\n{describe_missing(absent)}')
        return
    candidate = build_candidate(args, present[0])
    about = describe_run(candidate.facts, args.method, args.limit)
    out = args.out or default_out(args, candidate.facts['sha256'])
    options = Options(
        data_root=args.data_root,
        out=out,
        limit=args.limit,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
    )
    for protocol in present:
        results[protocol.benchmark] = run_benchmark(candidate, protocol, options, Lines())
        ordered = [results[p.benchmark] for p in protocols if p.benchmark in results]
        if is_main_process():  # after each benchmark: the next may take hours
            files = write_report(out, about, ordered)
    if is_main_process():
        print(as_text(about, ordered))
        if absent:
            print(f'\nskipped:\n{describe_missing(absent)}')
        print('\nwritten: ' + ', '.join(map(str, files)))


def main() -> None:
    args = parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.launcher != 'none':
        init_dist(args.launcher, 'nccl' if is_cuda_available() else 'gloo', timeout=PATIENCE)
    run(args)


if __name__ == '__main__':
    main()
    close_process_group()

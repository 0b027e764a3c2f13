"""What tools/train.py and tools/test.py have in common on their command lines."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction

from densevlm_mm.vlm.vocabulary import shipped_vocabularies
from densevlm_mm.vlm.vocabulary_files import INDEX_SUFFIXES


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add OpenMMLab's usual arguments: config, work dir, overrides, launcher."""
    parser.add_argument('config', help='path of the config')
    parser.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/<config name>)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='override entries, key=value')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by some launchers')


def load_config(args: argparse.Namespace) -> Config:
    """Config of parsed arguments, overrides applied."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return cfg


def vocabulary_of_words(words: list[str] | None) -> str | list[str] | None:
    """What `build_vocabulary` takes of an option's words: one may be a shipped name or a file, several are names."""
    if words is None or len(words) > 1:
        return words
    (word,) = words
    is_file = word.endswith(('.json', *INDEX_SUFFIXES)) or '::' in word
    return word if is_file or word in shipped_vocabularies() else words

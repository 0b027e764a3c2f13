"""The launchers: what they run, what they say when an argument is missing, which exit code they give."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / 'tools'
ARGUMENTS = {
    'dist_train.sh': ['config.py', '4'],
    'dist_test.sh': ['config.py', 'model.pth', '4'],
    'slurm_train.sh': ['gpu', 'job', 'config.py', 'work'],
    'slurm_test.sh': ['gpu', 'job', 'config.py', 'model.pth'],
}
FORWARDED = ['--cfg-options', 'a.b=c d']


@pytest.fixture
def recorder(tmp_path) -> Path:
    """A stand-in for python and srun that prints its arguments, one per line, and exits with 7."""
    path = tmp_path / 'srun'
    path.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\nexit 7\n')
    path.chmod(0o755)
    return path


def run(script: str, arguments: list[str], recorder: Path, **variables: str) -> subprocess.CompletedProcess:
    # only what is given here, whatever the caller's own job has set
    environment = {'PATH': f'{recorder.parent}:{os.environ["PATH"]}', 'PYTHON': str(recorder), **variables}
    command = ['bash', str(TOOLS / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(('script', 'arguments'), ARGUMENTS.items())
def test_usage_when_an_argument_is_missing(script, arguments, recorder):
    result = run(script, arguments[:-1], recorder)
    assert result.returncode == 2
    assert result.stdout == ''
    assert result.stderr.startswith('usage: bash ')
    assert script in result.stderr


@pytest.mark.parametrize(('script', 'arguments'), ARGUMENTS.items())
def test_arguments_and_exit_code_pass_through(script, arguments, recorder):
    result = run(script, [*arguments, *FORWARDED], recorder)
    assert result.returncode == 7, result.stderr
    assert result.stdout.splitlines()[-2:] == FORWARDED


@pytest.mark.parametrize(('script', 'tool'), [('dist_train.sh', 'train.py'), ('dist_test.sh', 'test.py')])
def test_dist(script, tool, recorder):
    arguments = ARGUMENTS[script]
    variables = {'NNODES': '2', 'NODE_RANK': '1', 'MASTER_ADDR': '10.0.0.1', 'PORT': '1234'}
    for given, (nnodes, rank, address, port) in (
        ({}, ('1', '0', '127.0.0.1', '29500')),
        (variables, variables.values()),
    ):
        assert run(script, arguments, recorder, **given).stdout.splitlines() == [
            '-m', 'torch.distributed.run', f'--nnodes={nnodes}', f'--node_rank={rank}',
            f'--master_addr={address}', f'--master_port={port}', '--nproc_per_node=4',
            f'{TOOLS / tool}', *arguments[:-1], '--launcher', 'pytorch',
        ]  # fmt: skip


@pytest.mark.parametrize(('script', 'call'), [
    ('slurm_train.sh', ['train.py', 'config.py', '--work-dir', 'work', '--launcher', 'slurm']),
    ('slurm_test.sh', ['test.py', 'config.py', 'model.pth', '--launcher', 'slurm']),
])  # fmt: skip
def test_slurm(script, call, recorder):
    variables = {'GPUS': '4', 'CPUS_PER_TASK': '3', 'SRUN_ARGS': '--quotatype=auto --async'}
    lines = run(script, ARGUMENTS[script], recorder, **variables).stdout.splitlines()
    assert lines == [
        '--partition=gpu', '--job-name=job', '--gres=gpu:4', '--ntasks=4', '--ntasks-per-node=4',
        '--cpus-per-task=3', '--kill-on-bad-exit=1', '--quotatype=auto', '--async',
        str(recorder), '-u', f'{TOOLS / call[0]}', *call[1:],
    ]  # fmt: skip


def test_slurm_over_several_machines(recorder):
    lines = run('slurm_train.sh', ARGUMENTS['slurm_train.sh'], recorder, GPUS='32').stdout.splitlines()
    assert {'--gres=gpu:8', '--ntasks=32', '--ntasks-per-node=8'} <= set(lines)

"""The loop's place in the data: batches after a resume are those of a run that was never interrupted."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import IterBasedTrainLoop, Runner, loops
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from densevlm_mm.datasets import EpochSampler
from densevlm_mm.datasets.tar_shards import write_shards
from densevlm_mm.hooks import ResumableTrainLoop
from densevlm_mm.registry import DATASETS, LOOPS

names = (f'loop{i}' for i in itertools.count())


def seen(image: Tensor, sample: BaseDataElement) -> tuple:
    """All that training can see of an item."""
    return sample.img_id, (sample.gt_regions.boxes.tolist(), image.numpy().tobytes(), sample.get('replaced', ()))


class Model(BaseModel):
    """Remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.batches: list[list[tuple]] = []

    def forward(self, inputs: list[Tensor], data_samples: list, mode: str) -> dict[str, Tensor]:
        assert mode == 'loss'
        self.batches.append([*map(seen, inputs, data_samples)])
        return {'loss': self.weight * sum(image.float().mean() for image in inputs)}


class StopAfter(Hook):
    """An interruption, without a checkpoint."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.iterations:
            raise KeyboardInterrupt


PIPELINE = [
    {'type': 'densevlm_mm.LoadImage'},
    {'type': 'densevlm_mm.ResizeLongestPad', 'size': 16},
    {'type': 'densevlm_mm.SampleGridRegions'},
    {'type': 'densevlm_mm.PackRegions'},
]


@pytest.fixture
def dataset(miniworld: Path):
    """24 images, five batches of 5 per epoch with the last one smaller."""
    config = {'type': 'densevlm_mm.ImageDataset', 'data_root': str(miniworld), 'pipeline': PIPELINE}
    config |= {'ann_file': 'annotations/instances_train2017.json', 'data_prefix': {'img_path': 'train2017'}}
    return DATASETS.build(config)


@pytest.fixture
def shards(miniworld: Path, tmp_path: Path):
    """The same images in tar files of five, three of them damaged."""
    folder = tmp_path / 'images'
    shutil.copytree(miniworld / 'train2017', folder)
    for path in sorted(folder.iterdir())[3:20:8]:
        path.write_bytes(path.read_bytes()[:200])
    write_shards(folder, tmp_path / 'shards', per_shard=5)
    config = {'type': 'densevlm_mm.TarImageDataset', 'data_root': str(tmp_path), 'pipeline': PIPELINE}
    return DATASETS.build(config | {'data_prefix': {'img_path': 'shards'}})


@pytest.fixture
def train(tmp_path, dataset) -> Callable[..., list]:
    """Runs `max_iters` iterations with a checkpoint every third one; returns the batches that the model saw."""

    def run(
        folder: str,
        *,
        max_iters: int = 13,
        stop_after: int | None = None,
        resume: bool = False,
        loop: str = 'densevlm_mm.ResumableTrainLoop',
        sampler: object = None,
        hooks: dict | None = None,
        **loader: object,
    ) -> list:
        model = Model()
        runner = Runner(
            model,
            work_dir=str(tmp_path / folder),
            train_dataloader={
                'dataset': dataset,
                'batch_size': 5,
                'sampler': sampler or {'type': 'densevlm_mm.EpochSampler'},
                'collate_fn': {'type': 'pseudo_collate'},
                'num_workers': 0,
                **loader,
            },
            train_cfg={'type': loop, 'max_iters': max_iters},
            optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1}},
            default_hooks={
                'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 3},
                'logger': None,
                'sampler_seed': None,
                **(hooks or {}),
            },
            custom_hooks=[StopAfter(stop_after)] if stop_after else [],
            resume=resume,
            randomness={'seed': 5},
            experiment_name=next(names),
            log_level='ERROR',
        )
        try:
            runner.train()
        except KeyboardInterrupt:
            assert stop_after
        finally:  # end the workers here, not when a garbage collection happens to find them
            runner.train_loop.dataloader_iterator = runner.train_dataloader._iterator = None
        return model.batches

    return run


def images(batches: list) -> list[int]:
    return [img_id for batch in batches for img_id, _ in batch]


def test_registered():
    assert LOOPS.get('densevlm_mm.ResumableTrainLoop') is ResumableTrainLoop
    assert issubclass(ResumableTrainLoop, IterBasedTrainLoop)


def test_epochs_roll_over(train):
    """Each epoch shows every image once, in an order and with grids of its own."""
    batches = train('whole', max_iters=10)
    epochs = images(batches[:5]), images(batches[5:])
    assert [len(batch) for batch in batches] == 2 * [5, 5, 5, 5, 4]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(set(epochs[0]))
    first, second = (dict(pair for batch in part for pair in batch) for part in (batches[:5], batches[5:]))
    assert sum(first[i] != second[i] for i in first) > 12


def test_batches_are_those_of_the_sampler(train, dataset):
    batches = train('whole', max_iters=10)
    sampler, expected = EpochSampler(dataset, seed=5), []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected += [seen(item['inputs'], item['data_samples']) for item in map(dataset.__getitem__, sampler)]
    assert [pair for batch in batches for pair in batch] == expected


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('drop_last', [False, True])
@pytest.mark.parametrize('stop_after', [5, 8])
def test_resumed_run_sees_the_same_batches(train, workers, drop_last, stop_after):
    """Interrupted after 5 (8) iterations, it goes on from the checkpoint at 3 (6), in the first (second) epoch."""
    loader = {'num_workers': workers, 'drop_last': drop_last, 'persistent_workers': workers > 0}
    whole = train('whole', drop_last=drop_last)
    before = train('parts', stop_after=stop_after, **loader)
    after = train('parts', resume=True, **loader)
    done = stop_after // 3 * 3
    assert before == whole[:stop_after]
    assert after == whole[done:]
    assert len(whole) == 13


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('stop_after', [5, 8])
def test_a_hook_that_sets_the_epoch_does_not_move_a_resumed_run(train, workers, stop_after):
    """mmengine's default one sets it to the loop's, which is always 0."""
    options = {'hooks': {'sampler_seed': {'type': 'DistSamplerSeedHook'}}, 'num_workers': workers}
    whole = train('whole')
    assert train('parts', stop_after=stop_after, **options) == whole[:stop_after]
    assert train('parts', resume=True, **options) == whole[stop_after // 3 * 3 :]


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('ratio', [1.0, 0.75])
def test_resumed_run_on_shards_with_bad_images_sees_the_same_batches(train, shards, workers, ratio):
    options = {'dataset': shards, 'sampler': {'type': 'densevlm_mm.EpochSampler', 'window': 2, 'ratio': ratio}}
    whole = train('whole', **options)
    options |= {'num_workers': workers, 'persistent_workers': workers > 0}
    assert train('parts', stop_after=8, **options) == whole[:8]
    assert train('parts', resume=True, **options) == whole[6:]
    replaced = {path for batch in whole for _, (*_, pairs) in batch for _, path in pairs}
    assert len(replaced) == 3
    assert not {Path(img_id).name for img_id in images(whole)} & {Path(path).name for path in replaced}


def run_as_onedl_does(loop: IterBasedTrainLoop) -> nn.Module:
    """The fork's loop in short: its iterator is told to skip, and no batch is asked for to be discarded."""
    for moment in ('before_train', 'before_train_epoch'):
        loop.runner.call_hook(moment)
    loop.dataloader_iterator.skip_iter(loop.iter)
    while loop.iter < loop.max_iters:
        loop.run_iter(next(loop.dataloader_iterator))
    return loop.runner.model


def test_loop_that_skips_sees_the_same_batches(train, monkeypatch):
    whole = train('whole')
    train('parts', stop_after=8)
    monkeypatch.setattr(IterBasedTrainLoop, 'run', run_as_onedl_does)
    monkeypatch.setattr(loops._InfiniteDataloaderIterator, 'skip_iter', lambda self, steps: None, raising=False)
    assert train('parts', resume=True) == whole[6:]


def test_run_that_is_complete_does_nothing_when_resumed(train):
    train('whole', max_iters=6)
    assert train('whole', max_iters=6, resume=True) == []


def test_data_that_was_trained_on_is_not_read_again(train, dataset, monkeypatch):
    train('parts', stop_after=10)
    read = []
    original = dataset.prepare_data
    monkeypatch.setattr(dataset, 'prepare_data', lambda item: read.append(item) or original(item))
    after = train('parts', resume=True)
    assert len(read) == len(images(after)) == 5 + 5 + 5 + 5 - 1  # iterations 9 (the last of its epoch) to 12


def test_other_samplers_are_refused(train):
    with pytest.raises(TypeError, match='ResumableTrainLoop needs sampler=.*EpochSampler.*, not DefaultSampler'):
        train('run', sampler={'type': 'DefaultSampler', 'shuffle': True})


def test_less_data_than_a_batch(train):
    with pytest.raises(ValueError, match='24 images per process and epoch, less than one batch of 30'):
        train('run', batch_size=30, drop_last=True)

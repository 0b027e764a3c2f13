"""Every config of this project's own methods: it says what its name says, and it builds.

Towers are replaced by tiny ones, checkpoints by random weights and COCO by the mini world, which has its layout.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner
from torch import nn

from densevlm_mm.apis import check_config
from densevlm_mm.datasets.tar_shards import write_shards
from densevlm_mm.models import RegionClassifier
from densevlm_mm.models.distillers import RegionDistiller
from densevlm_mm.vlm import build_vocabulary

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
ALL = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts)
# the others have tests of their own
ELSEWHERE = ('clipself_', 'regionclip_', 'declip_', 'fvit_', 'catseg_', 'segment_')
OWN = [path for path in ALL if path.parts[0] in ('densevlm', 'miniworld') and not path.stem.startswith(ELSEWHERE)]
DISTILLERS = [path for path in OWN if path.stem.startswith('densevlm_')]
EVALUATIONS = [path for path in OWN if path.stem.startswith('eval_') and not path.stem.endswith('-captions')]
RETRIEVALS = [path for path in OWN if path.stem.endswith('-captions')]
every_own = pytest.mark.parametrize('path', [path for path in OWN if path not in RETRIEVALS], ids=str)

# Like the released list: 204 things and 112 stuff, three names twice.
RELEASED_LIST = [{'name': f'thing {i}', 'isthing': 1} for i in range(204)]
RELEASED_LIST += [{'name': f'thing {i}' if i < 3 else f'stuff {i}'} for i in range(112)]


def load(path: Path) -> Config:
    return Config.fromfile(CONFIGS / path)


def inherited(path: Path, level: int = 1) -> Iterator[tuple[int, Path]]:
    """A config and all that it inherits from, each with its level."""
    yield level, path
    bases = [base for base in Config._get_base_files(str(path)) if '::' not in base]  # of MMDetection: not ours
    for base in bases:
        yield from inherited((path.parent / base).resolve(), level + 1)


@pytest.fixture(autouse=True)
def environment(miniworld, monkeypatch, tmp_path) -> None:
    """An empty working folder, and what the mini world's configs ask for."""
    monkeypatch.setenv('MINIWORLD_DATA', str(miniworld))
    monkeypatch.setenv('MINIWORLD_WEIGHTS', str(tmp_path / 'weights'))
    monkeypatch.chdir(tmp_path)
    # mmengine lays out the config five times per run, which takes longer than everything else
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **style: (text, False))


@pytest.fixture(scope='session')
def ade20k(miniworld, tmp_path_factory) -> Path:
    """The mini world's validation part in the layout of ADE20K."""
    root = tmp_path_factory.mktemp('ADEChallengeData2016')
    (root / 'images').mkdir()
    (root / 'ade20k_panoptic_val.json').symlink_to(miniworld / 'annotations' / 'panoptic_val2017.json')
    (root / 'ade20k_panoptic_val').symlink_to(miniworld / 'annotations' / 'panoptic_val2017')
    (root / 'images' / 'validation').symlink_to(miniworld / 'val2017')
    return root


def tiny(arch: str | dict) -> dict:
    """A config of the same kind with one block of width 16 per head; names of classes need CLIP's own words."""
    if not isinstance(arch, str):
        return arch
    patch = {'EVA02-CLIP-B-16': 16, 'EVA02-CLIP-L-14-336': 14}[arch]
    vision = {'image_size': 4 * patch, 'patch_size': patch, 'layers': 12 if patch == 16 else 24, 'width': 16}
    vision |= {'head_width': 16, 'mlp_ratio': 2.6667, 'eva_model_name': 'tiny', 'pt_hw_seq_len': 4}
    vision |= {'rope': True, 'naiveswiglu': True, 'subln': True}
    return {'embed_dim': patch, 'vision_cfg': vision, 'text_cfg': {'width': 8, 'heads': 2, 'layers': 1}}


def shrink(cfg: Config, miniworld: Path, ade20k: Path, folder: Path) -> Config:
    """Leave everything as it is, but for weights, data, sizes and the precision that CPUs lack."""
    for part in ('student', 'teacher', 'vlm'):
        if part in cfg.model:
            cfg.model[part].update(arch=tiny(cfg.model[part].arch), checkpoint=None)
    if cfg.model.type == 'densevlm_mm.DenseVLM':
        cfg.model.setdefault('templates', 'photo')
    if isinstance(cfg.model.get('vocabulary'), dict) and 'file' in cfg.model.vocabulary:
        (folder / 'classes.py').write_text(f'LIST = {RELEASED_LIST!r}')
        cfg.model.vocabulary.file = f'{folder}/classes.py::LIST'
    if cfg.get('optim_wrapper', {}).get('type') == 'AmpOptimWrapper':
        cfg.optim_wrapper.type = 'OptimWrapper'
        del cfg.optim_wrapper.dtype, cfg.optim_wrapper.loss_scale
    for part in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(part):
            move_data(cfg[part].dataset, miniworld, ade20k, folder)
            cfg[part].update(num_workers=0, persistent_workers=False, batch_size=2)
    cfg.work_dir = str(folder / 'run')
    cfg.experiment_name = f'config{id(cfg)}'
    return cfg


def move_data(dataset: dict, miniworld: Path, ade20k: Path, folder: Path) -> None:
    """From the folders of real data to those of the mini world."""
    if dataset.type == 'densevlm_mm.TarImageDataset':
        write_shards(miniworld / 'train2017', folder / 'shards')
        dataset.data_root = str(folder / 'shards')
    else:
        dataset.data_root = str(ade20k if 'ADE' in dataset.data_root else miniworld)
    if dataset.data_prefix.get('img_path') == 'train':
        dataset.data_prefix.img_path = 'train2017'


@pytest.fixture
def shrunk(miniworld, ade20k, tmp_path):
    return lambda path: shrink(load(path), miniworld, ade20k, tmp_path)


def test_there_are_configs():
    assert len(DISTILLERS) >= 8 and len(EVALUATIONS) >= 5


@pytest.mark.parametrize('path', ALL, ids=str)
def test_inheritance_is_shallow(path):
    assert max(level for level, _ in inherited(CONFIGS / path)) <= 3


@every_own
def test_paths_are_relative_to_the_users_folders(path, monkeypatch):
    monkeypatch.delenv('MINIWORLD_DATA')
    monkeypatch.delenv('MINIWORLD_WEIGHTS')
    cfg = load(path)
    for part in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(part):
            assert cfg[part].dataset.data_root.startswith('data/')
    for part in ('student', 'teacher', 'vlm'):
        checkpoint = cfg.model.get(part, {}).get('checkpoint')
        assert checkpoint is None or checkpoint.startswith(('checkpoints/', 'work_dirs/miniworld/'))


@pytest.mark.parametrize('path', DISTILLERS, ids=str)
def test_names_of_distillers(path):
    cfg, name = load(path), path.stem
    method, backbone, data, *variant = name.split('_')
    assert cfg.model.type == 'densevlm_mm.DenseVLM'
    assert data in {'densevlm': ('coco', 'sa1b', 'objects365'), 'miniworld': ('miniworld',)}[path.parts[0]]
    assert method in cfg.model.type.lower()
    arch = cfg.model.student.arch
    if path.parts[0] == 'densevlm':
        assert arch == {'vitb16': 'EVA02-CLIP-B-16', 'vitl14-336': 'EVA02-CLIP-L-14-336'}[backbone]
        assert cfg.model.student.trainable_blocks == {'vitb16': 12, 'vitl14-336': 24}[backbone]
        assert cfg.val_dataloader.dataset.pipeline[2].patch_size == {'vitb16': 16, 'vitl14-336': 14}[backbone]
    else:
        same = backbone == 'tiny-large' or variant == ['untuned-teacher']
        assert (arch == cfg.model.teacher.arch) == same
        assert cfg.model.student.trainable_blocks == arch.vision_cfg.layers
        assert cfg.val_dataloader.dataset.pipeline[2].patch_size == arch.vision_cfg.patch_size
    expected = {'ratio': 1.0, 'thing_classes': 'thing', 'mean': 'per_group', 'fewer': False}
    expected |= {
        'as-released': {'ratio': 0.25, 'fewer': True},
        'coupled-group-mean': {'thing_classes': 'all'},
        'coupled-one-mean': {'thing_classes': 'all', 'mean': 'joint'},
        'coupled-stuff-twice': {'thing_classes': 'all'},
    }.get(variant[0] if variant else '', {})
    found = {
        'ratio': cfg.train_dataloader.sampler.get('ratio', 1.0),
        'thing_classes': cfg.model.loss.get('thing_classes', 'thing'),
        'mean': cfg.model.loss.get('mean', 'per_group'),
        'fewer': 'num_things' in cfg.model.loss,
    }
    assert found == expected


@pytest.mark.parametrize('path', EVALUATIONS, ids=str)
def test_names_of_evaluations(path):
    cfg, (_, backbone, data) = load(path), path.stem.split('_')
    assert cfg.model.type == 'densevlm_mm.RegionClassifier'
    assert not cfg.get('train_dataloader') and not cfg.get('val_dataloader')
    dataset, patch_size = cfg.test_dataloader.dataset, cfg.test_dataloader.dataset.pipeline[2].patch_size
    if data == 'miniworld':
        assert cfg.model.vlm.arch == cfg[f'{backbone}_arch']
        return
    assert cfg.model.vlm.arch == {'vitb16': 'EVA02-CLIP-B-16', 'vitl14-336': 'EVA02-CLIP-L-14-336'}[backbone]
    assert patch_size == {'vitb16': 16, 'vitl14-336': 14}[backbone]
    assert cfg.model.eval_vocabulary == data.replace('-', '_')
    assert dataset.data_root == {'coco-panoptic': 'data/coco', 'ade20k-panoptic': 'data/ADEChallengeData2016'}[data]


@pytest.mark.parametrize('path', RETRIEVALS, ids=str)
def test_names_of_retrievals(path):
    cfg, (method, backbone, data) = load(path), path.stem.split('_')
    assert method == 'eval' and data in ('coco-captions', 'miniworld-captions')
    assert cfg.model.type == 'densevlm_mm.ImageTextEncoder'
    arch, size = cfg.model.vlm.arch, cfg.test_dataloader.dataset.pipeline[1].size
    if isinstance(arch, str):
        expected = {'vitb16': ('EVA02-CLIP-B-16', 224), 'vitl14-336': ('EVA02-CLIP-L-14-336', 336)}
        assert (arch, size) == expected[backbone]
    else:
        assert arch == cfg[f'{backbone}_arch'] and size == arch.vision_cfg.image_size


@pytest.mark.parametrize('path', RETRIEVALS, ids=str)
def test_retrievals_build(path, shrunk):
    cfg = shrunk(path)
    check_config(cfg, train=False)
    runner = Runner.from_cfg(cfg)
    assert type(runner.model).__name__ == 'ImageTextEncoder'
    assert runner.test_loop.dataloader.dataset[0]['data_samples'].captions


def test_recipe_is_the_published_one():
    """4 x 16 images, 6 epochs of 118,287 images, AdamW with 1e-5 and 0.1, threshold 0.3, scale 100, blend of 0.9."""
    cfg = load('densevlm/densevlm_vitb16_coco.py')
    assert cfg.max_iters == 6 * 1848 and cfg.train_cfg.max_iters == cfg.max_iters
    assert cfg.train_dataloader.batch_size * 4 == cfg.auto_scale_lr.base_batch_size == 64
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.betas, optimizer.eps) == (1e-5, 0.1, (0.9, 0.999), 1e-8)
    assert (cfg.model.loss.score_thr, cfg.model.loss.logit_scale) == (0.3, 100.0)
    assert [hook.get('alpha') for hook in cfg.custom_hooks] == [None, 0.9]
    assert cfg.train_dataloader.dataset.pipeline[2] == {
        'type': 'densevlm_mm.SampleGridRegions', 'min_split': 2, 'max_split': 6
    }  # fmt: skip
    released = load('densevlm/densevlm_vitb16_coco_as-released.py')
    assert released.train_dataloader.batch_size == released.auto_scale_lr.base_batch_size == 16
    assert released.model.loss.num_things == 203


@pytest.mark.parity
def test_learning_rate_is_the_references():
    cfg = load('densevlm/densevlm_vitb16_coco.py')
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = [PARAM_SCHEDULERS.build(c, default_args={'optimizer': optimizer}) for c in cfg.param_scheduler]
    rates = []
    for _ in range(cfg.max_iters):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    with np.load(ROOT / 'tests' / 'data' / 'parity' / 'data_eval.npz') as file:
        steps, values = file['lr_steps'], file['lr_vals']
    assert steps.tolist() == [0, 1, 499, 999, 1000, 1001, 5000, 11087]
    np.testing.assert_allclose(np.array(rates)[steps], values, rtol=1e-6)


@every_own
def test_builds(path, shrunk):
    """Everything that a run builds, short of running: model, data, evaluation, hooks, optimiser, loop."""
    cfg = shrunk(path)
    check_config(cfg, train='eval' not in path.stem)
    runner = Runner.from_cfg(cfg)
    if path in EVALUATIONS:
        assert isinstance(runner.model, RegionClassifier)
        loader = runner.test_loop.dataloader
    else:
        build_optim_wrapper(runner.model, cfg.optim_wrapper)
        loop = runner.build_train_loop(runner._train_loop)
        assert type(loop).__name__ == 'ResumableTrainLoop'
        batch = next(iter(loop.dataloader))
        assert batch['inputs'][0].shape == (3, *[cfg.train_dataloader.dataset.pipeline[1].size] * 2)
        loader = runner.val_loop.dataloader
        assert {type(hook).__name__ for hook in runner.hooks} >= {'CheckpointHook', 'ParamSchedulerHook'}
    sample = loader.dataset[0]
    tower, preprocessor = runner.model.vlm.visual, runner.model.data_preprocessor
    torch.testing.assert_close(preprocessor.mean.flatten(), 255 * torch.tensor(tower.mean))
    torch.testing.assert_close(preprocessor.std.flatten(), 255 * torch.tensor(tower.std))
    grid = tower.grid_of(sample['inputs'][None])
    assert sample['data_samples'].gt_regions.masks.shape[1:] == grid
    assert len(sample['data_samples'].gt_regions) > 0
    assert [type(metric).__name__ for metric in runner.test_evaluator.metrics] == ['RegionAccuracy']
    if path in DISTILLERS:
        assert isinstance(runner.model, RegionDistiller)
        assert runner.model.vocabulary.num_things - runner.model.alignment_loss.num_things == ('released' in path.stem)


def test_main_recipe_takes_a_step(shrunk, miniworld):
    """One training step at full resolution, and the evaluation after it."""
    cfg = shrunk('densevlm/densevlm_vitb16_coco.py')
    names = json.loads((miniworld / 'annotations' / 'panoptic_val2017.json').read_text())['categories']
    cfg.model.eval_vocabulary = {'things': [], 'stuff': [category['name'] for category in names]}
    cfg.model.eval_templates = 'photo'
    cfg.model.loss.score_thr = 0.0
    cfg.merge_from_dict(
        {'train_cfg.max_iters': 1, 'default_hooks.logger.interval': 1, 'val_dataloader.dataset.indices': 2}
    )
    cfg.val_dataloader.dataset.pipeline[2].area_range = (4**2, 1024**2)
    runner = Runner.from_cfg(cfg)
    runner.train()
    logged = runner.message_hub.log_scalars
    assert logged['train/kept_share'].current() == 1
    assert {'val/boxes.thing.macc1', 'val/masks.stuff.macc5'} <= set(logged)


@every_own
def test_vocabularies_are_those_of_the_data(path):
    cfg = load(path)
    vocabulary = build_vocabulary(cfg.model.eval_vocabulary)
    sizes = {'ade20k-panoptic': (100, 50), 'miniworld': (10, 8)}
    data = path.stem.split('_')[2]
    assert (vocabulary.num_things, vocabulary.num_stuff) == sizes.get(data, (80, 53))


def test_metafiles_list_every_model():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert sorted(index) == sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/*/metafile.yml'))
    files = [yaml.safe_load((ROOT / path).read_text()) for path in index]
    listed = [model for file in files for model in file['Models']]
    collections = [collection for file in files for collection in file['Collections']]
    assert {model['In Collection'] for model in listed} == {collection['Name'] for collection in collections}
    assert all((ROOT / collection['README']).is_file() for collection in collections)
    for model in listed:
        assert Path(model['Config']).stem == model['Name'] and (ROOT / model['Config']).is_file()
        assert model.get('Weights', 'https://').startswith('https://')
    families = {Path(path).parts[1] for path in index}
    tests = ('eval_', 'fvit_vitl14_transfer2')
    models = [path for path in ALL if path.parts[0] in families and not path.stem.startswith(tests)]
    assert sorted(model['Config'] for model in listed) == sorted(f'configs/{path.as_posix()}' for path in models)


def test_metafiles_name_the_batch_size():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    listed = [model for path in index for model in yaml.safe_load((ROOT / path).read_text())['Models']]
    batches = {model['Config']: model['Metadata'].get('Batch Size') for model in listed}
    scaled = {path: load(Path(path).relative_to('configs')).get('auto_scale_lr') for path in batches}
    # what MMSegmentation's own configs train has no entry
    assert all(batches[path] == scale.base_batch_size for path, scale in scaled.items() if scale)
    assert [path for path, batch in batches.items() if batch is None and 'training_free' not in path] == []

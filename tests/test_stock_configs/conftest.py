"""The configs of ``docs/swap_backbone.md``, run in an empty folder with a tiny tower and tiny data."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from torch import Tensor, nn

TESTS = Path(__file__).parents[1]
PARITY = TESTS / 'data' / 'parity'
# Width and blocks of the tiny tower in the place of the ViT-B/16's.
TINY = {'768': '96', '(3, 5, 7, 11)': '(0, 1, 2, 3)'}


@dataclass
class Training:
    """One training run.

    Attributes:
        runner: After its last step.
        reached: Names of the parameters that a backward pass reached.
    """

    runner: Runner
    reached: set[str]

    @property
    def model(self) -> nn.Module:
        return self.runner.model

    @property
    def trained(self) -> set[str]:
        return {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}


@pytest.fixture(scope='session')
def page() -> dict[str, str]:
    """Code blocks of the page by the file name in their first line."""
    text = (TESTS.parent / 'docs' / 'swap_backbone.md').read_text('utf-8')
    return dict(re.findall(r'^```python\n# (\S+)\n(.*?)^```$', text, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope='session')
def tiny_page(page: dict[str, str]) -> dict[str, str]:
    """The blocks with the tiny tower."""
    config = json.loads((PARITY / 'eva_tiny.json').read_text())
    arch = {key: config[key] for key in ('embed_dim', 'vision_cfg', 'text_cfg')}
    swaps = {**TINY, "'EVA02-CLIP-B-16'": repr(arch)}
    blocks = {}
    for name, code in page.items():
        for wide, tiny in swaps.items():
            assert 'backbone=dict(\n' not in code or wide in code
            code = code.replace(wide, tiny)
        blocks[name] = code
    return blocks


@pytest.fixture(scope='module')
def in_empty_folder(tmp_path_factory: pytest.TempPathFactory, tiny_page: dict[str, str]) -> Iterator[Path]:
    """An empty working directory but for the page's configs in ``page`` and the tower's checkpoint."""
    folder = tmp_path_factory.mktemp('stock')
    (folder / 'page').mkdir()
    for name, code in tiny_page.items():
        (folder / 'page' / name).write_text(code)
    (folder / 'checkpoints').mkdir()
    shutil.copy(PARITY / 'eva_tiny.pt', folder / 'checkpoints' / 'densevlm_vitb16.pt')
    draw_image(np.random.default_rng(0)).save(folder / 'image.jpg')
    # on maps this small, threads wait for each other longer than they work
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def tower_weights() -> dict[str, Tensor]:
    """What the tower's checkpoint holds."""
    from densevlm_mm.vlm import load_vlm

    config = json.loads((PARITY / 'eva_tiny.json').read_text())
    arch = {key: config[key] for key in ('embed_dim', 'vision_cfg', 'text_cfg')}
    return load_vlm(arch, PARITY / 'eva_tiny.pt').visual.state_dict()


@pytest.fixture(scope='session')
def shrink() -> Callable[[str, dict], Config]:
    """A config of the page with tiny options, also written to the working directory under its own name."""

    def make(name: str, options: dict) -> Config:
        config = Config.fromfile(f'page/{name}.py')
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            options = {**options, f'{loader}.num_workers': 0, f'{loader}.persistent_workers': False}
        config.merge_from_dict(options)
        config.dump(f'{name}.py')
        return Config.fromfile(f'{name}.py')

    return make


@pytest.fixture(scope='session')
def train() -> Callable[[Config, str], Training]:
    """Train by a config through mmengine's runner."""

    def run(config: Config, name: str) -> Training:
        # mmengine knows runners by this name; by default it is the second in which they start
        config.merge_from_dict({'work_dir': f'work_dirs/{name}', 'experiment_name': name, 'randomness': {'seed': 0}})
        runner = Runner.from_cfg(config)
        reached: set[str] = set()
        for key, parameter in runner.model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda _, key=key: reached.add(key))
        runner.train()
        return Training(runner, reached)

    return run


@pytest.fixture(scope='session')
def check_training(tower_weights: dict[str, Tensor]) -> Callable[[Training], None]:
    """A finite loss, a gradient for whatever trains, and a frozen tower."""

    def check(training: Training) -> None:
        scalars = training.runner.message_hub.log_scalars
        losses = {name: scalars[name].current() for name in scalars if 'loss' in name}
        assert 'train/loss' in losses
        assert np.isfinite(list(losses.values())).all(), losses
        assert losses['train/loss'] > 0
        assert training.reached == training.trained
        assert training.reached
        assert not any(name.startswith('backbone.') for name in training.reached)
        tower = training.model.backbone.tower
        assert not any(module.training for module in tower.modules())
        check_tower(tower.state_dict(), tower_weights)

    return check


@pytest.fixture(scope='session')
def check_saved_tower(tower_weights: dict[str, Tensor]) -> Callable[[str], None]:
    """A checkpoint of the whole model holds the tower, unchanged."""

    def check(path: str) -> None:
        saved = torch.load(path, weights_only=False)['state_dict']
        prefix = 'backbone.tower.'
        check_tower({k[len(prefix) :]: v for k, v in saved.items() if k.startswith(prefix)}, tower_weights)

    return check


def check_tower(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def draw_image(generator: np.random.Generator) -> Image.Image:
    """128 x 96 px of noise with a bright box at x 16..63, y 24..71."""
    pixels = generator.integers(0, 128, (96, 128, 3), np.uint8)
    pixels[24:72, 16:64] += 120
    return Image.fromarray(pixels)


@pytest.fixture(scope='session')
def make_coco() -> Callable[[], None]:
    """Two images with two objects each, where the stock configs look for COCO."""

    def make() -> None:
        root = Path('data/coco')
        (root / 'annotations').mkdir(parents=True)
        for part in ('train2017', 'val2017'):
            (root / part).mkdir()
            for number in (1, 2):
                draw_image(np.random.default_rng(number)).save(root / part / f'{number}.jpg')
            (root / 'annotations' / f'instances_{part}.json').write_text(json.dumps(coco_annotations()))

    return make


def coco_annotations() -> dict:
    categories = [{'id': 1, 'name': 'person'}, {'id': 3, 'name': 'car'}]
    images = [{'id': i, 'file_name': f'{i}.jpg', 'width': 128, 'height': 96} for i in (1, 2)]
    boxes = [(1, 16, 24, 48, 48), (3, 70, 10, 40, 60)]
    annotations = []
    for image in images:
        for category, x, y, w, h in boxes:
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image['id'],
                    'category_id': category,
                    'bbox': [x, y, w, h],
                    'area': w * h,
                    'iscrowd': 0,
                    'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    return {'images': images, 'annotations': annotations, 'categories': categories}


@pytest.fixture(scope='session')
def make_ade20k() -> Callable[[], None]:
    """Two images of three classes and unlabelled pixels, where the stock configs look for ADE20K."""

    def make() -> None:
        root = Path('data/ade/ADEChallengeData2016')
        labels = np.zeros((96, 128), np.uint8)
        labels[:48], labels[48:, 32:], labels[24:72, 16:64] = 3, 17, 150
        for part in ('training', 'validation'):
            for kind in ('images', 'annotations'):
                (root / kind / part).mkdir(parents=True)
            for number in (1, 2):
                draw_image(np.random.default_rng(number)).save(root / 'images' / part / f'{number}.jpg')
                Image.fromarray(labels).save(root / 'annotations' / part / f'{number}.png')

    return make

"""Configs that cannot run are refused with one message, before anything starts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from densevlm_mm.apis import ConfigError, check_config
from densevlm_mm.vlm import CheckpointError

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture
def config(tmp_path) -> Config:
    """A config all of whose files exist."""
    for name in ('student.pt', 'teacher.pt', 'classes.py', 'text.npy', 'train.json', 'val.json'):
        (tmp_path / name).touch()
    torch.save({'state_dict': {'weight': torch.zeros(1)}}, tmp_path / 'last.pth')
    for name in ('train', 'val', 'maps'):
        (tmp_path / name).mkdir()
    root = str(tmp_path)
    return Config(
        {
            'model': {
                'student': {'arch': 'ViT-B-16', 'checkpoint': f'{root}/student.pt'},
                'teacher': {'arch': 'ViT-L-14', 'checkpoint': f'{root}/teacher.pt'},
                'vocabulary': {'file': f'{root}/classes.py::THINGS'},
                'text_embeddings': {'teacher': f'{root}/text.npy'},
            },
            'train_dataloader': {
                'dataset': {'data_root': root, 'ann_file': 'train.json', 'data_prefix': {'img_path': 'train'}}
            },
            'val_dataloader': {
                'dataset': {
                    'data_root': root,
                    'ann_file': 'val.json',
                    'data_prefix': {'img_path': 'val', 'seg_map_path': 'maps'},
                }
            },
            'test_dataloader': {'dataset': {'ann_file': f'{root}/test.json'}},
            'load_from': f'{root}/last.pth',
        }
    )


def test_nothing_to_complain_about(config):
    check_config(config)


@pytest.mark.parametrize(
    'name',
    [
        'student.pt',
        'teacher.pt',
        'classes.py',
        'text.npy',
        'last.pth',
        'train.json',
        'val.json',
        'train',
        'val',
        'maps',
    ],
)
def test_every_missing_file_is_noticed(config, tmp_path, name):
    path = tmp_path / name
    path.rename(tmp_path / 'elsewhere')
    with pytest.raises(ConfigError) as error:
        check_config(config)
    assert str(error.value) == f'the config cannot run:\n  {path} does not exist'


def test_only_the_part_that_runs_is_looked_at(config, tmp_path):
    (tmp_path / 'train.json').unlink()
    with pytest.raises(ConfigError, match='test.json does not exist') as error:
        check_config(config, train=False)
    assert 'train.json' not in str(error.value)


def test_further_files(config, tmp_path):
    with pytest.raises(ConfigError, match='weights.pth does not exist'):
        check_config(config, files=[str(tmp_path / 'weights.pth')])
    check_config(config, files=[str(tmp_path / 'last.pth')])


def test_all_problems_come_in_one_message(config, tmp_path):
    (tmp_path / 'student.pt').unlink()
    (tmp_path / 'val.json').unlink()
    config.train_dataloder = {}
    config.custom_hook = []
    with pytest.raises(ConfigError) as error:
        check_config(config)
    assert str(error.value).splitlines()[1:] == [
        "  unknown key 'train_dataloder': did you mean 'train_dataloader'?",
        "  unknown key 'custom_hook': did you mean 'custom_hooks'?",
        f'  {tmp_path}/student.pt does not exist',
        f'  {tmp_path}/val.json does not exist',
    ]


@pytest.mark.parametrize(
    'key', ['max_iters', 'warmup_iters', 'data_root', 'load_image', 'words', 'env_cfg', 'work_dir']
)
def test_variables_of_a_config_are_no_typos(config, key):
    config[key] = 1
    check_config(config)


@pytest.mark.parametrize('checkpoint', [None, 'openai', 'laion2b_s34b_b88k', 'hf-hub:owner/repo'])
def test_what_is_no_local_file(config, checkpoint):
    config.model.student.checkpoint = checkpoint
    check_config(config)


@pytest.fixture
def empty_folder(tmp_path, monkeypatch) -> None:
    """Relative paths lead nowhere."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures('empty_folder')
def test_main_recipe_says_what_is_missing_and_who_publishes_it():
    with pytest.raises(ConfigError) as error:
        check_config(Config.fromfile(CONFIGS / 'densevlm' / 'densevlm_vitb16_coco.py'))
    lines = str(error.value).splitlines()
    assert lines[0].endswith('densevlm_vitb16_coco.py cannot run:')
    student = 'EVA02_CLIP_B_psz16_s8B.pt'
    teacher = 'clipself_coco_6_save6_512_eva_vitl14_24layers.pt'
    missing = {line.split()[0] for line in lines if line.endswith('does not exist')}
    annotations = ('annotations/instances_train2017.json', 'annotations/panoptic_val2017.json')
    data = (*annotations, 'train2017', 'val2017', 'annotations/panoptic_val2017')
    assert missing == {f'checkpoints/{student}', f'checkpoints/{teacher}', *(f'data/coco/{path}' for path in data)}
    sources = dict(line.split(': ', 1) for line in lines[1:] if not line.endswith('does not exist'))
    assert 'huggingface' in sources[student].lower().replace(' ', '')
    assert 'the teacher' in sources[teacher] and 'lyhisme/DenseVLM' in sources[teacher]
    assert 'cocodataset.org' in sources['data/coco/']


@pytest.mark.usefixtures('empty_folder')
@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('densevlm/densevlm_vitb16_coco_as-released.py', ['data/densevlm/openseg_classes.py', 'HVision-NKU/DenseVLM']),
        ('densevlm/eval_vitb16_ade20k-panoptic.py', ['data/ADEChallengeData2016/ade20k_panoptic_val.json', 'csail']),
        ('densevlm/eval_vitl14-336_coco-panoptic.py', ['data/coco/val2017', 'cocodataset.org']),
        ('miniworld/eval_student_miniworld.py', ['data/miniworld/val2017', 'make_miniworld.py']),
    ],
)
def test_other_recipes_too(name, words, monkeypatch):
    monkeypatch.setenv('MINIWORLD_DATA', 'data/miniworld')
    with pytest.raises(ConfigError) as error:
        check_config(Config.fromfile(CONFIGS / name), train='eval' not in name)
    for word in words:
        assert word in str(error.value)


@pytest.mark.usefixtures('empty_folder')
@pytest.mark.parametrize(
    ('path', 'source', 'word'),
    [
        ('data/coco', 'data/coco/', 'unpack'),
        ('data/coco/val2017', 'data/coco/', 'unpack'),
        ('data/coco_stuff164k/images/val2017', 'data/coco_stuff164k', 'coco_stuff.py'),
        ('data/VOCdevkit/VOC2010/labels', 'data/VOCdevkit', 'pascal_context.py'),
        ('data/cityscapes/gtFine/val', 'data/cityscapes', 'createTrainIdLabelImgs.py'),
        ('data/ADE20K_2021_17_01/ade847.json', 'data/ADE20K_2021_17_01', 'ade20k_full.py'),
    ],
)
def test_each_folder_has_its_own_source(path, source, word):
    with pytest.raises(ConfigError) as error:
        check_config(Config({}), files=[path])
    _, missing, *sources = str(error.value).splitlines()
    assert missing == f'  {path} does not exist'
    assert [line.strip().split(': ')[0] for line in sources] == [source] and word in sources[0]


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ('touch ' + os.environ['PAYLOAD'],)


def test_a_file_to_resume_that_holds_code_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setenv('PAYLOAD', str(tmp_path / 'ran'))
    torch.save({'state_dict': {}, 'meta': Payload()}, tmp_path / 'last.pth')
    with pytest.raises(CheckpointError, match='last.pth is refused: reading it would run'):
        check_config(config)
    assert not (tmp_path / 'ran').exists()


def test_nouns_must_be_the_categories_of_the_boxes(tmp_path):
    for name, nouns in (('a', ['cat', 'dog']), ('b', ['dog', 'cat'])):
        categories = [{'id': i, 'name': noun} for i, noun in enumerate(nouns)]
        (tmp_path / f'{name}.json').write_text(json.dumps({'categories': categories}))
    dataset = {'data_root': str(tmp_path), 'ann_file': 'a.json'}
    cfg = Config({'model': {'nouns': str(tmp_path / 'b.json')}, 'train_dataloader': {'dataset': dataset}})
    with pytest.raises(ConfigError, match='b.json.* are not the categories of .*a.json.*set both'):
        check_config(cfg)
    cfg.model.nouns = str(tmp_path / 'a.json')
    check_config(cfg)
    cfg.model.nouns = ['cat', 'dog']
    check_config(cfg)

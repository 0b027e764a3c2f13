"""tools/benchmark_seg.py: one table for many data sets, whether or not it was interrupted."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.models import SegDataPreProcessor
from PIL import Image

from densevlm_mm.apis import benchmark_seg, load_weights
from densevlm_mm.apis.benchmark_seg_report import as_csv, as_text
from densevlm_mm.registry import MODELS
from densevlm_mm.seg import TrainingFreeSegmentor
from densevlm_mm.seg.image_counts import ImageCounts
from densevlm_mm.seg.protocols import ProtocolError, read_protocol
from densevlm_mm.vlm import CheckpointError, build_vocabulary, load_vlm
from densevlm_mm.vlm.digest import sha256

CATSEG = """
model = dict(
    type='densevlm_mm.CATSeg',
    vlm=dict(arch={arch}),
    vocabulary=['object'],
    guidance_blocks=(0, 1),
    templates='none',
    clip_size=32,
    squash_size=48,
    window=32,
    stride=16,
    aggregator=dict(
        guidance_dims=(8, 8),
        hidden_dim=16,
        num_layers=1,
        num_heads=2,
        window=4,
        pad_len=0,
        appearance_dim=8,
        text_dim=8,
        decoder_dims=(32, 16),
        guidance_proj_dims=(8, 8),
    ),
)
"""
ROOT = Path(__file__).parents[2]
PROTOCOLS = ROOT / 'configs' / 'training_free' / 'protocols'
TINY = {'title': 'tiny', 'templates': 'none', 'window': 32, 'stride': 16, 'short_side': 32, 'long_side': 64}
TINY |= {'logit_scale': 40}
NAMES = ('voc20', 'ctx59', 'ade847')
IMAGES = 3


def write_maps(folder: Path, image_dir: str, label_dir: str, suffix: str, labels: np.ndarray) -> None:
    """Images of noise, and the label maps ``(n, H, W)`` that go with them."""
    (folder / image_dir).mkdir(parents=True, exist_ok=True)
    (folder / label_dir).mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*labels.shape, 3), np.uint8)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        Image.fromarray(image).save(folder / image_dir / f'image{number}.jpg')
        Image.fromarray(label).save(folder / label_dir / f'image{number}{suffix}')


@pytest.fixture(scope='module')
def data_root(tmp_path_factory) -> Path:
    """Three images each of VOC, Context and ADE20K-847, where they are looked for."""
    root = tmp_path_factory.mktemp('data')
    draw = np.random.default_rng(1).integers
    names = '\n'.join(f'image{number}' for number in range(IMAGES))
    for benchmark, labels in {
        'voc20': draw(0, 21, (IMAGES, 24, 32), np.uint8),
        'ctx59': draw(0, 60, (IMAGES, 32, 24), np.uint8),
        'ade847': draw(0, 847, (IMAGES, 24, 24)).astype(np.uint16),
    }.items():
        protocol = read_protocol(PROTOCOLS, 'catseg', benchmark)
        folder = root / protocol.folder
        write_maps(folder, protocol.image_dir, protocol.label_dir, protocol.label_suffix or '.png', labels)
        if protocol.image_list:
            (folder / protocol.image_list).parent.mkdir(parents=True, exist_ok=True)
            (folder / protocol.image_list).write_text(names)
        if 'file' in protocol.vocabulary:
            classes = [{'name': f'class {number}'} for number in range(847)]
            (folder / protocol.vocabulary['file']).write_text(json.dumps(classes))
    return root


@pytest.fixture(scope='module')
def protocols(tmp_path_factory) -> Path:
    """The data sets as they are, and a method for small images."""
    folder = tmp_path_factory.mktemp('protocols')
    shutil.copytree(PROTOCOLS / 'data', folder / 'data')
    (folder / 'methods').mkdir()
    (folder / 'methods' / 'densevlm.yaml').write_text(yaml.safe_dump(TINY))
    shutil.copy(PROTOCOLS / 'methods' / 'catseg.yaml', folder / 'methods')
    return folder


@pytest.fixture(scope='module')
def arch(tiny_arch) -> dict:
    """A CLIP with CLIP's own tokenizer."""
    return {**tiny_arch(), 'text_cfg': {'context_length': 16, 'width': 8, 'heads': 2, 'layers': 1}}


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory, arch) -> Path:
    """Its weights, in a file that says which architecture they are of."""
    path = tmp_path_factory.mktemp('weights') / 'clip.pth'
    torch.manual_seed(0)
    torch.save({'state_dict': load_vlm(arch).state_dict(), 'meta': {'vlm': {'arch': arch}}}, path)
    return path


@pytest.fixture(scope='module')
def run(data_root, protocols, checkpoint) -> Callable[..., Path]:
    """Runs the tool in this process; its folder."""

    def run(out: Path | None, *arguments: object, data: Path = data_root, weights: Path = checkpoint) -> Path | None:
        given = ['--checkpoint', weights, '--data-root', data, '--protocols', protocols]
        given += [] if out is None else ['--out', out]
        argv = ['benchmark_seg.py', *map(str, [*given, '--num-workers', 0, '--device', 'cpu', *arguments])]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, 'argv', argv)
            runpy.run_path(str(ROOT / 'tools' / 'benchmark_seg.py'), run_name='__main__')
        return out

    return run


@pytest.fixture(scope='module')
def whole(run, tmp_path_factory) -> Path:
    """Folder of a run without interruption."""
    return run(tmp_path_factory.mktemp('whole'), '--benchmarks', *NAMES)


@pytest.fixture
def segmented(monkeypatch) -> list[int]:
    """Grows by one with every image that goes through the model."""
    images, segment = [], TrainingFreeSegmentor.segment

    def count(self: TrainingFreeSegmentor, *args: object) -> torch.Tensor:
        images.append(len(images))
        return segment(self, *args)

    monkeypatch.setattr(TrainingFreeSegmentor, 'segment', count)
    return images


def read(out: Path) -> tuple[str, dict, list[dict]]:
    """Table, document, and the rows of the CSV file."""
    lines = [line for line in (out / 'benchmark_seg.csv').read_text().splitlines() if not line.startswith('#')]
    document = json.loads((out / 'benchmark_seg.json').read_text())
    return (out / 'benchmark_seg.txt').read_text(), document, list(csv.DictReader(lines))


def test_table_says_what_it_is_of(whole, checkpoint):
    text, document, rows = read(whole)
    about = document['run']
    assert about['sha256'] == sha256(checkpoint) and about['sha256'] in text
    assert about['dense_mode'] == 'value' and about['method'] == 'densevlm' and about['versions']['mmsegmentation']
    for name in ('mIoU', 'mIoU_gt'):
        assert about['conventions'][name] in text
    *rows_of_text, mean = (line.split() for line in text.splitlines()[-4:])
    assert [row[0] for row in rows_of_text] == list(NAMES) and mean[:3] == ['mean', 'of', '3']
    assert float(mean[4]) == pytest.approx(sum(float(row['mIoU']) for row in rows) / 3, abs=0.01)
    assert [row['benchmark'] for row in rows] == list(NAMES)
    assert f'# sha256: {about["sha256"]}' in (whole / 'benchmark_seg.csv').read_text().splitlines()


def test_figures_are_those_of_each_data_set(whole):
    """Classes and ignored labels differ; what is wrong with them would show in the number of counted pixels."""
    _, document, rows = read(whole)
    by_name = {entry['benchmark']: entry for entry in document['results']}
    assert [by_name[name]['classes'] for name in NAMES] == [20, 59, 847]
    for row in rows:
        metrics = by_name[row['benchmark']]['metrics']
        assert float(row['mIoU']) == metrics['mIoU'] and 0 <= metrics['mIoU'] <= metrics['mIoU_gt'] <= 100
    classes = json.loads((whole / 'ade847.json').read_text())['per_class']
    assert sum(entry['truth'] for entry in classes) == IMAGES * 24 * 24
    assert any(entry['truth'] for entry in classes[256:])


def test_data_of_which_nothing_counts(whole):
    """Every pixel is ignored, as may happen in the first few images."""
    _, document, _ = read(whole)
    results = [{**entry, 'metrics': {}} for entry in document['results']]
    text = as_text(document['run'], results)
    assert text.splitlines()[-1].split() == ['mean', 'of', '3', *'-----']
    assert as_csv(document['run'], results).splitlines()[-1].endswith(',,,,')
    results[0]['metrics'] = {'mIoU': 50.0}
    assert as_text(document['run'], results).splitlines()[-1].split() == ['mean', 'of', '3', '-', '50.00', *'---']


@pytest.mark.parametrize('batch_size', [1, 2])
def test_killed_run_goes_on_to_the_same_table(run, whole, tmp_path, monkeypatch, segmented, batch_size):
    added, add = [], ImageCounts.add

    def kill(self: ImageCounts, counts: dict) -> None:
        if len(added) == 4 // batch_size:
            with self._file.open('a') as file:
                file.write('{"image": "torn')
            raise KeyboardInterrupt
        added.append(counts)
        add(self, counts)

    arguments = ('--benchmarks', *NAMES, '--batch-size', batch_size)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ImageCounts, 'add', kill)
        run(tmp_path, *arguments)
    kept = sum(map(len, added))
    assert 0 < kept < len(NAMES) * IMAGES
    segmented.clear()
    run(tmp_path, *arguments)
    assert len(segmented) == len(NAMES) * IMAGES - kept
    assert read(tmp_path) == read(whole)
    segmented.clear()
    run(tmp_path, *arguments)
    assert segmented == []


def test_other_settings_are_counted_anew(run, whole, tmp_path, segmented):
    shutil.copytree(whole / 'counts', tmp_path / 'counts')
    run(tmp_path, '--benchmarks', 'voc20', '--dense-mode', 'vanilla')
    assert len(segmented) == IMAGES
    text, document, _ = read(tmp_path)
    assert 'dense_mode: vanilla' in text
    assert document['results'][0]['metrics'] != read(whole)[1]['results'][0]['metrics']


def test_edited_templates_are_counted_anew(run, protocols, tmp_path, segmented):
    shutil.copytree(protocols, tmp_path / 'protocols')
    words = tmp_path / 'templates.txt'
    method = {**TINY, 'templates': str(words)}
    (tmp_path / 'protocols' / 'methods' / 'file.yaml').write_text(yaml.safe_dump(method))
    arguments = ('--benchmarks', 'voc20', '--method', 'file', '--protocols', tmp_path / 'protocols')
    for text, images in (('a photo of a {}', IMAGES), ('sand and water on a {}', IMAGES), ('a photo of a {}', 0)):
        words.write_text(text)
        segmented.clear()
        run(tmp_path / 'out', *arguments)
        assert len(segmented) == images


def test_templates_of_a_configured_model_are_settings(catseg, protocols, data_root, tmp_path):
    config = Config.fromfile(catseg[0])
    config.model.templates = str(tmp_path / 'templates.txt')
    protocol = read_protocol(protocols, 'catseg', 'voc20')
    dataset = benchmark_seg.build_dataset(protocol, data_root)
    for text in ('a photo of a {}', 'sand and water on a {}'):
        (tmp_path / 'templates.txt').write_text(text)
        candidate = benchmark_seg.configured_candidate(config, str(catseg[1]))
        assert benchmark_seg.describe_settings(candidate, protocol, dataset)['templates'] == [text]


def test_limit_is_a_part_of_the_whole(run, whole, tmp_path, segmented):
    text, document, rows = read(run(tmp_path, '--benchmarks', 'voc20', '--limit', 2))
    assert len(segmented) == 2 and rows[0]['images'] == '2' and '2 of 1449' in text
    assert document['run']['limit'] == 2
    assert document['results'][0]['metrics'] != read(whole)[1]['results'][0]['metrics']
    run(tmp_path, '--benchmarks', 'voc20')
    assert len(segmented) == IMAGES
    assert read(tmp_path)[1]['results'] == read(whole)[1]['results'][:1]


def test_processes_share_the_images(run, whole, tmp_path, monkeypatch, segmented):
    """One of two processes does its part and finds the other's missing; a single one then does the rest."""
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match='2 of 3 images .* share'):
        patch.setattr(benchmark_seg, 'get_rank', lambda: 1)
        patch.setattr(benchmark_seg, 'get_world_size', lambda: 2)
        run(tmp_path, '--benchmarks', 'voc20')
    assert len(segmented) == 1
    run(tmp_path, '--benchmarks', 'voc20')
    assert len(segmented) == IMAGES
    assert len(list(tmp_path.glob('counts/*/*.jsonl'))) == 2
    assert read(tmp_path)[1]['results'] == read(whole)[1]['results'][:1]


def test_missing_data_is_named_with_its_source(run, whole, tmp_path, capsys):
    run(tmp_path, '--benchmarks', 'cityscapes', 'voc20')
    printed = capsys.readouterr().out
    assert 'cityscapes/leftImg8bit/val' in printed and 'cityscapes-dataset.com' in printed
    text, document, rows = read(tmp_path)
    assert rows[0]['mIoU'] == '' and float(rows[1]['mIoU']) >= 0
    assert [line.split()[:3] for line in text.splitlines() if line.startswith('cityscapes')] == [
        ['cityscapes', '-', 'missing']
    ]
    assert document['results'][0]['prepare'] in printed
    with pytest.raises(SystemExit, match='cityscapes-dataset.com'):
        run(tmp_path, '--benchmarks', 'cityscapes', 'voc20', '--strict')


def test_unconverted_data_counts_as_missing(run, data_root, tmp_path, capsys):
    """The release is there, what is made of it is not."""
    shutil.copytree(data_root, tmp_path / 'data')
    protocol = read_protocol(PROTOCOLS, 'catseg', 'ctx59')
    for path in (tmp_path / 'data' / protocol.folder / protocol.label_dir).iterdir():
        path.unlink()
    arguments = ('--benchmarks', 'ctx59', 'voc20', '--limit', 1)
    _, document, rows = read(run(tmp_path / 'out', *arguments, data=tmp_path / 'data'))
    assert rows[0]['mIoU'] == '' and float(rows[1]['mIoU']) >= 0
    printed = capsys.readouterr().out
    assert 'image0.png: there is no such file' in printed and 'pascal_context.py' in printed
    assert document['results'][0]['missing'][0] in printed
    with pytest.raises(SystemExit, match='pascal_context.py'):
        run(tmp_path / 'out', *arguments, '--strict', data=tmp_path / 'data')


def test_weights_of_the_same_name_have_folders_of_their_own(run, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / checkpoint.name
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, 'note': 'other bytes'}, other)
    for weights in (checkpoint, other):
        run(None, '--benchmarks', 'voc20', '--limit', 1, weights=weights)
    expected = {f'clip_{sha256(weights)[:8]}_densevlm' for weights in (checkpoint, other)}
    assert {path.name for path in Path('work_dirs/benchmark_seg').iterdir()} == expected and len(expected) == 2


def test_without_any_data_nothing_is_built(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('densevlm_mm.seg.training_free.load_vlm', None)
    run(tmp_path / 'out', data=tmp_path)
    printed = capsys.readouterr().out
    assert all(f'{name}: no ' in printed for name in benchmark_seg.SUITES['training-free-8'])
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('arguments', 'message'), [
    (('--benchmarks', 'voc22'), "there are no benchmarks ['voc22']"),
    (('--limit', 0), '--limit must be at least 1'),
    (('--config', 'a.py', '--arch', 'ViT-B-16'), 'with --config use --cfg-options'),
])  # fmt: skip
def test_arguments_are_checked(run, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(tmp_path, *arguments)
    assert message in capsys.readouterr().err


@pytest.fixture(scope='module')
def catseg(tmp_path_factory, arch) -> tuple[Path, Path]:
    """Config and checkpoint of a small CAT-Seg."""
    folder = tmp_path_factory.mktemp('catseg')
    (folder / 'catseg.py').write_text(CATSEG.format(arch=arch))
    torch.manual_seed(1)
    model = MODELS.build(Config.fromfile(folder / 'catseg.py').model)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, folder / 'catseg.pth')
    return folder / 'catseg.py', folder / 'catseg.pth'


def test_catseg(run, catseg, data_root, tmp_path):
    """The suite without its large vocabularies."""
    config, weights = catseg
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'VOCdevkit').symlink_to(data_root / 'VOCdevkit')
    arguments = ('--suite', 'catseg-6', '--config', config, '--limit', 1)
    text, document, rows = read(run(tmp_path, *arguments, weights=weights, data=tmp_path / 'data'))
    assert [row['benchmark'] for row in rows] == list(benchmark_seg.SUITES['catseg-6'])
    assert [row['benchmark'] for row in rows if row['mIoU']] == ['ctx59', 'voc20', 'pas20b']
    about = document['run']
    assert about['model'] == 'CATSeg' and about['method'] == 'catseg' and about['sha256'] == sha256(weights)
    assert about['config']['clip_size'] == 32 and about['sha256'] in text and 'dense_mode: value' in text
    phrases = document['results'][-1]['settings']['phrases']
    assert len(phrases) == 59 and phrases[-1] == ['wood', 20]


def test_catseg_takes_no_settings_of_others(run, catseg, tmp_path):
    config, weights = catseg
    with pytest.raises(ProtocolError, match="method 'densevlm' has settings .* CATSeg has its own"):
        run(tmp_path, '--benchmarks', 'voc20', '--config', config, '--method', 'densevlm', weights=weights)
    with pytest.raises(ProtocolError, match="method 'catseg' has no window"):
        run(tmp_path, '--benchmarks', 'voc20', '--method', 'catseg')


def test_catseg_runs_in_the_dense_mode_that_it_was_trained_in(run, catseg, tmp_path):
    config, weights = catseg
    content = torch.load(weights, weights_only=True)
    trained = tmp_path / 'csa.pth'
    torch.save({**content, 'meta': {'vlm': {'dense_mode': 'csa'}}}, trained)
    arguments = ('--benchmarks', 'voc20', '--limit', 1, '--config', config)
    with pytest.raises(ValueError, match="csa.pth was trained in dense mode 'csa', .* 'value': .*dense_mode=csa"):
        run(tmp_path, *arguments, '--cfg-options', 'model.vlm.dense_mode=value', weights=trained)
    for named in ([], ['--cfg-options', 'model.vlm.dense_mode=csa']):
        run(tmp_path, *arguments, *named, weights=trained)
        assert read(tmp_path)[1]['run']['dense_mode'] == 'csa'


def test_catseg_needs_no_file_of_its_clip(catseg):
    config = Config.fromfile(catseg[0])
    config.model.vlm.checkpoint = 'gone.pth'
    candidate = benchmark_seg.configured_candidate(config, str(catseg[1]))
    assert candidate.facts['dense_mode'] == 'value' and config.model.vlm.checkpoint == 'gone.pth'


def test_catseg_sees_images_as_it_was_trained(catseg, tmp_path):
    content = torch.load(catseg[1], weights_only=True)
    meta = {'vlm': {'mean': [0.5] * 3, 'std': [0.25] * 3}}
    torch.save({**content, 'meta': meta}, tmp_path / 'half.pth')
    model = benchmark_seg.configured_candidate(Config.fromfile(catseg[0]), str(tmp_path / 'half.pth')).model
    assert model.data_preprocessor.mean.flatten().tolist() == [127.5] * 3


def test_types_of_a_config_are_mmsegs(catseg, tmp_path):
    """Without a prefix, as in its own configs."""
    config = Config.fromfile(catseg[0])
    config.model.data_preprocessor = {'type': 'SegDataPreProcessor', 'seg_pad_val': 255}
    model = benchmark_seg.configured_candidate(config, str(catseg[1])).model
    assert isinstance(model.data_preprocessor, SegDataPreProcessor)


def test_catseg_is_loaded_strictly(run, catseg, checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match='clip.pth does not fit this CATSeg(.|\n)*aggregator'):
        run(tmp_path, '--benchmarks', 'voc20', '--config', catseg[0])


@pytest.mark.parametrize(('name', 'benchmark'), [('voc20', 'voc20'), ('ade20k', 'ade150')])
def test_configs_say_what_the_protocols_say(name, benchmark):
    config = Config.fromfile(ROOT / 'configs' / 'training_free' / f'training-free_vitb16_{name}.py')
    protocol = read_protocol(PROTOCOLS, 'densevlm', benchmark)
    dataset, options = config.test_dataloader.dataset, protocol.dataset_options(Path('data'))
    assert dataset.type == f'densevlm_mm.{protocol.dataset}'
    assert {key: dataset.get(key, '') for key in options} == options
    assert {key: config.model[key] for key in protocol.model_settings()} == protocol.model_settings()
    assert build_vocabulary(config.model.vocabulary) == protocol.read_vocabulary(Path('data'))
    assert dataset.pipeline[1].scale == (protocol.long_side, protocol.short_side)


def test_config_gives_the_figures_of_the_command(whole, data_root, checkpoint, arch, tmp_path, monkeypatch):
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **style: (text, False))
    config = Config.fromfile(ROOT / 'configs' / 'training_free' / 'training-free_vitb16_voc20.py')
    config.merge_from_dict({
        'work_dir': str(tmp_path),
        'experiment_name': 'training_free',
        'log_level': 'ERROR',
        'test_dataloader.num_workers': 0,
        'test_dataloader.persistent_workers': False,
        'test_dataloader.dataset.data_root': str(data_root / 'VOCdevkit' / 'VOC2012'),
        'test_dataloader.dataset.pipeline.1.scale': (TINY['long_side'], TINY['short_side']),
        **{f'model.{key}': TINY[key] for key in ('templates', 'window', 'stride')},
    })  # fmt: skip
    config.model.vlm.arch = arch
    runner = Runner.from_cfg(config)
    load_weights(runner, str(checkpoint))
    assert runner.test() == read(whole)[1]['results'][0]['metrics']
    runner.model.set_vocabulary(runner.model.vocabulary.names[::-1])
    with pytest.raises(ValueError, match="other classes than the model's vocabulary: position 0 is 'aeroplane'"):
        runner.test()

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement, InstanceData

from densevlm_mm.evaluation import RegionAccuracy, region_accuracy
from densevlm_mm.evaluation.region_metric import check_vocabulary
from densevlm_mm.registry import METRICS

META = {'classes': ('cat', 'dog', 'bus', 'sky', 'grass'), 'is_thing': (True, True, True, False, False)}


def make_sample(number: int, labels: list[int]) -> BaseDataElement:
    generator = torch.Generator().manual_seed(number)
    labels = torch.tensor(labels, dtype=torch.int64)
    sample = BaseDataElement(metainfo={'img_path': f'{number}.jpg', 'img_id': number})
    sample.gt_regions = InstanceData(labels=labels, is_thing=torch.tensor(META['is_thing'])[labels])
    sample.pred_regions = InstanceData(
        box_logits=torch.randn(len(labels), 5, generator=generator),
        mask_logits=torch.randn(len(labels), 5, generator=generator),
    )
    return sample


def make_samples() -> list[BaseDataElement]:
    """Nine images, the second without a region."""
    generator = np.random.default_rng(0)
    return [make_sample(i, [] if i == 1 else generator.integers(0, 5, 6).tolist()) for i in range(9)]


def evaluate(samples, *, meta: dict | None = META, size: int | None = None, **options) -> dict[str, float]:
    evaluator = Evaluator(METRICS.build({'type': 'densevlm_mm.RegionAccuracy', **options}))
    evaluator.dataset_meta = meta
    for start in range(0, len(samples), 2):
        evaluator.process(samples[start : start + 2])
    return evaluator.evaluate(size or len(samples))


def test_figures_are_those_of_the_function_in_percent():
    samples = make_samples()
    labels = torch.cat([sample.gt_regions.labels for sample in samples])
    is_thing = torch.cat([sample.gt_regions.is_thing for sample in samples])
    expected = {}
    for source, key in (('boxes', 'box_logits'), ('masks', 'mask_logits')):
        logits = torch.cat([sample.pred_regions[key] for sample in samples])
        shares = region_accuracy(logits, labels, is_thing, topk=(1, 2), class_is_thing=META['is_thing'])
        biases = {name: shares.pop(name) for name in ('bias', 'reverse_bias')}
        expected |= {f'{source}.{name}': 100 * share for name, share in shares.items()}
    expected |= {name: 100 * share for name, share in biases.items()}
    assert len(expected) == 10
    assert evaluate(samples, topk=(1, 2)) == pytest.approx(expected)


def with_crops(samples: list[BaseDataElement]) -> list[BaseDataElement]:
    for number, sample in enumerate(samples):
        generator = torch.Generator().manual_seed(1000 + number)
        sample.pred_regions.crop_logits = torch.randn(len(sample.gt_regions.labels), 5, generator=generator)
    return samples


def test_crops_are_a_third_source(tmp_path, logger):
    samples = with_crops(make_samples())
    metrics = evaluate(samples, topk=(1, 2), per_class=True)
    logits, labels, is_thing = (
        torch.cat([getattr(sample, part)[name] for sample in samples])
        for part, name in (('pred_regions', 'crop_logits'), ('gt_regions', 'labels'), ('gt_regions', 'is_thing'))
    )
    expected = region_accuracy(logits, labels, is_thing, topk=(1, 2))
    found = {key.removeprefix('crops.'): value / 100 for key, value in metrics.items() if key.startswith('crops.')}
    assert found == pytest.approx({key: value for key, value in expected.items() if 'bias' not in key})
    without = {key: value for key, value in metrics.items() if not key.startswith('crops.')}
    assert without == evaluate(make_samples(), topk=(1, 2))
    lines = (tmp_path / 'run.log').read_text().splitlines()
    row = next(line.split() for line in lines if line.startswith('Crops-T '))
    assert row[1:3] == [f'{metrics[f"crops.thing.macc{k}"]:.2f}' for k in (1, 2)]
    assert sum(line.startswith('Crops-') for line in lines) == 2  # none where nothing was cropped
    assert any('Crops Top-2' in line for line in lines)


def test_crops_of_some_images_only_are_an_error():
    with pytest.raises(ValueError, match='1.jpg: has crop_logits while other images have none'):
        evaluate([make_sample(0, [0]), *with_crops([make_sample(1, [1])])])


def test_confusion_is_written_and_drawn(tmp_path):
    samples = make_samples()
    evaluate(samples, confusion=True, out_json=str(tmp_path / 'figures.json'))
    assert {path.name for path in tmp_path.iterdir()} == {
        'figures.json', 'region_confusion.npz', 'region_confusion.png'
    }  # fmt: skip
    counts = np.zeros((5, 5), int)
    for sample in samples:
        np.add.at(counts, (sample.gt_regions.labels.numpy(), sample.pred_regions.mask_logits.numpy().argmax(1)), 1)
    with np.load(tmp_path / 'region_confusion.npz') as file:
        np.testing.assert_array_equal(file['counts'], counts)
        assert tuple(file['names']) == META['classes']


def test_confusion_needs_to_know_the_things():
    with pytest.raises(ValueError, match="confusion=True needs a data set whose metainfo has 'classes' and 'is_thing'"):
        evaluate([make_sample(0, [0])], confusion=True, meta={'classes': META['classes']})


def test_kind_that_contradicts_the_data_set_is_found_while_processing():
    metric = RegionAccuracy()
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = META
    sample = make_sample(4, [0, 3])
    sample.gt_regions.is_thing = torch.tensor([True, True])
    with pytest.raises(ValueError, match='4.jpg: classes .3. have both'):
        evaluator.process([sample])


def test_another_name_of_one_class_is_accepted():
    """Mask2Former's ade20k_panoptic_val.json says 'plane' where everybody else says 'airplane'."""
    check_vocabulary(['tv', 'airplane'], ['tv', 'plane'])
    with pytest.raises(ValueError, match="class 1 is 'airplane'"):
        check_vocabulary(['tv', 'airplane'], ['tv', 'boat'])


def test_kind_of_unseen_classes_comes_from_the_data_set():
    sample = make_sample(0, [3])
    sample.pred_regions.mask_logits = torch.eye(5)[[0]]
    assert evaluate([sample])['bias'] == 100
    assert evaluate([sample], meta=None)['bias'] == 0


def test_second_evaluation_starts_afresh():
    metric = RegionAccuracy()
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = META
    evaluator.process(make_samples())
    evaluator.evaluate(9)
    evaluator.process([make_sample(0, [2])])
    assert set(evaluator.evaluate(1)) == {
        *(f'{source}.thing.macc{k}' for source in ('boxes', 'masks') for k in (1, 5)),
        'reverse_bias',
    }


@pytest.mark.parametrize('world', [2, 4])
def test_images_that_a_sampler_repeats_count_once(world):
    """What mmengine collects: the ranks' lists interleaved, cut to the size of the data set."""
    samples = make_samples()
    padded = samples + samples[: -len(samples) % world]
    assert len(padded) > len(samples)
    assert evaluate(padded, size=len(samples)) == evaluate(samples)


def read_json(path: Path) -> dict:
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return json.loads(path.read_text())


def test_json_file_holds_the_figures(tmp_path):
    path = tmp_path / 'new' / 'figures.json'
    metrics = evaluate(make_samples(), out_json=str(path))
    content = read_json(path)
    assert content['metrics'] == metrics
    assert content['images'] == 9
    assert content['groups']['thing']['regions'] + content['groups']['stuff']['regions'] == 48
    assert 'per_class' not in content
    again = evaluate([make_sample(0, [0, 3])], out_json=str(path))
    assert read_json(path)['metrics'] == again


def test_json_file_is_left_alone_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / 'figures.json'
    metrics = evaluate(make_samples(), out_json=str(path))

    def fail(*args) -> None:
        raise OSError('disk full')

    monkeypatch.setattr('os.replace', fail)
    with pytest.raises(OSError, match='disk full'):
        evaluate([make_sample(0, [0])], out_json=str(path))
    assert read_json(path)['metrics'] == metrics


def test_table_and_default_file_go_to_the_log_folder(tmp_path, logger):
    metrics = evaluate(make_samples())
    assert json.loads((tmp_path / 'region_accuracy.json').read_text())['metrics'] == metrics
    lines = (tmp_path / 'run.log').read_text().splitlines()
    for name, key in (('Boxes', 'boxes.thing'), ('Masks-T', 'masks.thing'), ('Masks-S', 'masks.stuff')):
        row = next(line.split() for line in lines if line.startswith(f'{name} '))
        assert row[1:3] == [f'{metrics[f"{key}.macc{k}"]:.2f}' for k in (1, 5)]
    assert any(line.startswith('bias') and f'{metrics["bias"]:.2f}' in line for line in lines)


def test_absent_group_has_a_dash_in_the_table(tmp_path, logger):
    evaluate([make_sample(0, [0, 1])])
    rows = [line.split() for line in (tmp_path / 'run.log').read_text().splitlines()]
    assert ['Masks-S', '-', '-', '0', '0'] in rows


def test_per_class(tmp_path, logger):
    sample = make_sample(0, [4, 0, 0])
    sample.pred_regions.box_logits = torch.eye(5)[[4, 0, 1]]
    sample.pred_regions.mask_logits = torch.eye(5)[[3, 0, 0]]
    evaluate([sample], per_class=True, topk=(1,))
    cat, grass = json.loads((tmp_path / 'region_accuracy.json').read_text())['per_class']
    assert cat == {
        'label': 0,
        'name': 'cat',
        'is_thing': True,
        'regions': 2,
        'boxes.acc1': 50,
        'masks.acc1': 100,
    }
    assert grass == {
        'label': 4, 'name': 'grass', 'is_thing': False, 'regions': 1, 'boxes.acc1': 100, 'masks.acc1': 0
    }  # fmt: skip
    rows = [line.split() for line in (tmp_path / 'run.log').read_text().splitlines()]
    assert ['cat', 'thing', '50.00', '100.00', '2'] in rows


def test_prefix():
    assert 'coco/bias' in evaluate(make_samples(), prefix='coco')


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match='none of 2 images has a region'):
        evaluate([make_sample(0, []), make_sample(1, [])])


def broken(**fields) -> BaseDataElement:
    sample = make_sample(5, [0, 3])
    for name, value in fields.items():
        setattr(sample.pred_regions, name, value)
    return sample


@pytest.mark.parametrize(
    'sample, message',
    [
        (broken(mask_logits=torch.full((2, 5), torch.nan)), '5.jpg: .*NaN'),
        (broken(mask_logits=torch.zeros(2, 6)), '5.jpg: the logits of boxes, masks differ'),
        (broken(mask_logits=torch.zeros(2, 3)), '5.jpg: labels .3. are out of range'),
        (
            broken(mask_logits=torch.eye(6)[:2], box_logits=torch.eye(6)[:2]),
            '5.jpg: the model scores 6 classes',
        ),
    ],
)
def test_bad_predictions_name_the_image(sample, message):
    with pytest.raises(ValueError, match=message):
        evaluate([sample])


def test_missing_field_is_named():
    sample = make_sample(5, [0, 3])
    del sample.pred_regions.mask_logits
    with pytest.raises(KeyError, match="5.jpg: no 'mask_logits'"):
        evaluate([sample])


def test_typos_are_errors():
    with pytest.raises(TypeError, match='per_clas'):
        RegionAccuracy(per_clas=True)
    with pytest.raises(ValueError, match='topk'):
        RegionAccuracy(topk=(0,))


RANK = """
import json, sys
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from mmengine.dataset import DefaultSampler
from test_region_metric import evaluate, make_sample, make_samples
_, tests, store, rank, alone = sys.argv
dist.init_process_group('gloo', init_method=f'file://{store}/store', rank=int(rank), world_size=2)
samples = make_samples()
mine = [samples[i] for i in DefaultSampler(samples, shuffle=False)]
assert len(mine) == 5
metrics = evaluate(mine, size=len(samples), collect_dir=f'{store}/parts')
assert metrics == json.loads(alone), metrics
try:
    evaluate([make_sample(int(rank), [])], size=2)
except ValueError as error:
    assert 'none of 2 images has a region' in str(error)
else:
    raise AssertionError('nothing to evaluate')
dist.destroy_process_group()
"""


def test_two_processes_agree_with_one(tmp_path):
    """Nine images on two ranks: the first is evaluated twice, and counted once. Where there is nothing, both say so."""
    alone = json.dumps(evaluate(make_samples()))
    command = [sys.executable, '-c', RANK, str(Path(__file__).parent), str(tmp_path)]
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen([*command, str(rank), alone], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors

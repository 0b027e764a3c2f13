"""The inferencer: all tasks on tiny models, every kind of input, and what is refused."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from PIL import Image
from pycocotools import mask as coco_mask

pytest.importorskip('mmseg')

from densevlm_mm.apis import Inferencer, vocabulary_of_words
from densevlm_mm.apis.clip_tasks import to_input
from densevlm_mm.apis.image_inputs import list_images
from densevlm_mm.compat import CompatError
from densevlm_mm.datasets.grids import grid_boxes
from densevlm_mm.datasets.image_file import BadImageError
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import CheckpointError, class_embeddings, load_vlm
from densevlm_mm.vlm.checkpoint_formats import model_meta

ROOT = Path(__file__).parents[2]
NAMES = ['car', 'tree', 'star']
CLASSES = {'things': NAMES, 'stuff': ['grass', 'sky']}
TEMPLATES = ['a photo of a {}.']


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory, tiny_arch) -> Path:
    """A CLIP with random weights whose file says what it is."""
    torch.manual_seed(0)
    vlm = load_vlm(tiny_arch())
    path = tmp_path_factory.mktemp('clip') / 'clip.pth'
    torch.save({'state_dict': vlm.state_dict(), 'meta': {'vlm': model_meta(vlm.config, dense_mode='value')}}, path)
    return path


@pytest.fixture(scope='module')
def build(checkpoint):
    def build(task: str = 'regions', vocabulary: object = CLASSES, **options: object) -> Inferencer:
        options = {'templates': TEMPLATES, 'device': 'cpu', 'size': 64, **options}
        return Inferencer(checkpoint, task, vocabulary, **options)

    return build


@pytest.fixture
def photo() -> np.ndarray:
    """RGB, higher than wide."""
    return np.random.default_rng(0).integers(0, 256, (90, 60, 3), np.uint8)


@pytest.fixture
def folder(tmp_path, photo) -> Path:
    """Three images of two sizes, one of them damaged, and a text."""
    root = tmp_path / 'photos'
    root.mkdir()
    Image.fromarray(photo).save(root / 'a.png')
    Image.fromarray(photo[:60]).save(root / 'a.bmp')
    Image.fromarray(photo).save(root / 'b.png')
    (root / 'c.png').write_bytes((root / 'b.png').read_bytes()[:500])
    (root / 'notes.txt').write_text('no image')
    return root


class TestInputs:
    def test_every_kind_is_the_same_image(self, photo, tmp_path):
        Image.fromarray(photo).save(tmp_path / 'photo.png')
        content = io.BytesIO()
        Image.fromarray(photo).save(content, format='png')
        kinds = [
            tmp_path / 'photo.png', str(tmp_path / 'photo.png'), content.getvalue(), photo[..., ::-1],
            Image.fromarray(photo),
        ]  # fmt: skip
        for kind in kinds:
            (source,) = list_images(kind)
            np.testing.assert_array_equal(source.read(), photo)
        assert len({source.name for source in list_images(kinds)}) == len(kinds)

    def test_grey_images_get_three_channels(self, photo):
        (array,), (image,) = list_images(photo[..., 0]), list_images(Image.fromarray(photo[..., 0]))
        assert array.read().shape == (90, 60, 3)
        np.testing.assert_array_equal(array.read(), image.read())

    def test_exif_turns_an_image(self, photo, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(photo).save(tmp_path / 'turned.png', exif=exif)
        (source,) = list_images(tmp_path / 'turned.png')
        np.testing.assert_array_equal(source.read(), np.rot90(photo, -1))

    def test_folders_by_name_without_other_files(self, folder):
        sources = list_images(folder)
        assert [Path(source.path).name for source in sources] == ['a.bmp', 'a.png', 'b.png', 'c.png']
        assert [source.name for source in sources] == ['a_bmp', 'a_png', 'b', 'c']

    @pytest.mark.parametrize(
        ('given', 'error', 'words'),
        [
            ('https://x.org/a.jpg', ValueError, 'nothing is fetched'),
            ('gone.jpg', FileNotFoundError, 'gone.jpg: there is no such'),
            (3, ValueError, 'not int'),
            ([], ValueError, 'no image was given'),
        ],
    )
    def test_what_is_no_image(self, given, error, words):
        with pytest.raises(error, match=words):
            list_images(given)

    @pytest.mark.parametrize('array', [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4), np.uint8)])
    def test_arrays_that_are_no_images(self, array):
        (source,) = list_images(array)
        with pytest.raises(ValueError, match='00000000'):
            source.read()

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='no image in this folder'):
            list_images(tmp_path)

    def test_bytes_that_are_no_image(self):
        for content in (b'', b'text'):
            with pytest.raises(BadImageError, match='00000000'):
                list_images(content)[0].read()


class TestRegions:
    def test_equals_the_clip_by_hand(self, build, photo, checkpoint, tiny_arch):
        found = build()(photo[..., ::-1], grid=(3, 2))['predictions'][0]
        vlm = load_vlm(tiny_arch(), checkpoint)
        images = to_input(photo, 64, vlm)[None]
        assert images.shape == (1, 3, 64, 40)
        boxes = grid_boxes(60, 90, 3, 2)
        features = F.normalize(vlm.encode_boxes(images, [boxes / torch.tensor([60, 90, 60, 90])]), dim=-1)
        texts = class_embeddings(vlm, [*NAMES, 'grass', 'sky'], TEMPLATES, normalize=True)
        scores, labels = (vlm.logit_scale.exp() * features @ texts.T).softmax(-1).max(-1)
        assert found['labels'] == labels.tolist()
        torch.testing.assert_close(torch.tensor(found['scores']), scores)
        torch.testing.assert_close(torch.tensor(found['bboxes']), boxes)
        assert found['names'] == [[*NAMES, 'grass', 'sky'][label] for label in labels]
        assert found['size'] == [90, 60]

    def test_boxes_of_one_s_own(self, build, photo):
        boxes = [[0, 0, 30, 30], [10, 20, 60, 90]]
        found = build()(photo[..., ::-1], boxes=boxes)['predictions'][0]
        assert found['bboxes'] == boxes and len(found['labels']) == 2
        several = build()([photo, photo], boxes=[boxes, boxes[:0] or np.zeros((0, 4))], show_progress=False)
        assert [len(one['labels']) for one in several['predictions']] == [2, 0]

    @pytest.mark.parametrize('boxes', [[[0, 0, 1]], [[[0, 0, 1, 1]], [[0, 0, 1, 1]]]])
    def test_boxes_that_do_not_fit(self, build, photo, boxes):
        with pytest.raises(ValueError, match=r'boxes must be \(N, 4\)'):
            build()(photo, boxes=boxes)

    def test_options_are_checked(self, build, photo):
        with pytest.raises(ValueError, match='grid must be'):
            build()(photo, grid=(0, 2))
        with pytest.raises(ValueError, match='batch_size must be'):
            build()(photo, batch_size=0)
        with pytest.raises(ValueError, match="boxes are for task 'regions'"):
            build('similarity')(photo, boxes=[[0, 0, 1, 1]])

    def test_another_vocabulary_without_another_model(self, build, photo):
        inferencer = build()
        model, before = inferencer._task.vlm, inferencer(photo)['predictions'][0]
        inferencer.set_vocabulary(['moss', 'car'])
        after = inferencer(photo)['predictions'][0]
        assert inferencer._task.vlm is model and inferencer.vocabulary.names == ('moss', 'car')
        assert set(after['names']) <= {'moss', 'car'}
        inferencer.set_vocabulary(CLASSES)
        assert inferencer(photo)['predictions'][0] == before

    def test_dense_modes(self, build, photo):
        inferencer = build()
        before = inferencer(photo)['predictions'][0]['scores']
        assert inferencer.dense_mode == 'value' and 'csa' in inferencer.dense_modes
        inferencer.dense_mode = 'csa'
        assert inferencer(photo)['predictions'][0]['scores'] != before
        assert (
            build(dense_mode='csa')(photo)['predictions'][0]['scores'] == inferencer(photo)['predictions'][0]['scores']
        )
        with pytest.raises(ValueError, match='sclip'):
            inferencer.dense_mode = 'sclip'


def test_similarity_maps(build, photo, checkpoint, tiny_arch):
    result = build('similarity')(photo[..., ::-1], return_datasamples=True)
    (sample,) = result['predictions']
    vlm = load_vlm(tiny_arch(), checkpoint)
    dense = vlm.encode_dense(to_input(photo, 64, vlm)[None])
    texts = class_embeddings(vlm, [*NAMES, 'grass', 'sky'], TEMPLATES, normalize=True)
    maps = F.interpolate(torch.einsum('bchw,kc->bkhw', dense, texts), size=(90, 60), mode='bilinear')[0].detach()
    torch.testing.assert_close(sample.similarity.data, maps, rtol=1e-4, atol=1e-5)
    found = build('similarity')(photo[..., ::-1])['predictions'][0]
    for label, (x, y) in enumerate(found['points']):
        assert maps[label, y, x] == pytest.approx(found['highest'][label], abs=1e-4)
        assert maps[label].max() == pytest.approx(found['highest'][label], abs=1e-4)
        assert maps[label].min() == pytest.approx(found['lowest'][label], abs=1e-4)


def test_segments_by_the_clip_alone(build, photo):
    inferencer = build('segment')
    (sample,) = inferencer(photo, return_datasamples=True)['predictions']
    labels = sample.pred_sem_seg.data[0].numpy()
    found = inferencer(photo)['predictions'][0]
    assert labels.shape == (90, 60) and sum(found['shares']) == pytest.approx(1)
    assert found['shares'] == sorted(found['shares'], reverse=True)
    for label, name, share, mask in zip(*(found[key] for key in ('labels', 'names', 'shares', 'masks')), strict=True):
        np.testing.assert_array_equal(coco_mask.decode(mask), labels == label)
        assert name == inferencer.vocabulary.names[label] and share == pytest.approx((labels == label).mean())


def test_a_missing_library_is_named_with_its_remedy(build, photo, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmseg', None)
    with pytest.raises(CompatError, match=r'mmseg cannot be imported, mmseg is missing.*\n.*openmmlab'):
        build('segment')


class TestConfigs:
    @pytest.fixture
    def classifier(self, monkeypatch) -> Config:
        """The evaluation of the mini world's student, whose image size and prompts the config says."""
        return Config.fromfile(ROOT / 'configs' / 'miniworld' / 'eval_student_miniworld.py')

    @pytest.fixture
    def student(self, classifier, tmp_path) -> Path:
        vlm = load_vlm(classifier.model.vlm.arch.to_dict())
        torch.save({'state_dict': vlm.state_dict()}, tmp_path / 'student.pth')
        return tmp_path / 'student.pth'

    @pytest.mark.parametrize('task', ['regions', 'segment', 'similarity'])
    def test_a_classifier_s_clip_does_every_task_of_clips(self, classifier, student, photo, task):
        inferencer = Inferencer(classifier, task, weights=student, device='cpu')
        assert len(inferencer.vocabulary) == 18 and inferencer.vocabulary.num_stuff == 8
        assert inferencer(photo)['predictions'][0]['names']
        if task != 'segment':
            assert inferencer._task.size == 64 and inferencer._task.templates == TEMPLATES

    def test_by_its_name(self, student, photo):
        found = Inferencer('eval_student_miniworld', weights=student, device='cpu')(photo)
        assert len(found['predictions'][0]['labels']) == 16

    @pytest.fixture
    def cat_seg(self, tmp_path, tiny_arch) -> Config:
        """A small CAT-Seg, whose weights are in catseg.pth; the file of its CLIP is gone."""
        vlm = {'arch': tiny_arch(), 'checkpoint': None}
        model = {'type': 'densevlm_mm.CATSeg', 'vlm': vlm, 'vocabulary': NAMES, 'guidance_blocks': (0, 1)}
        model |= {'templates': TEMPLATES, 'clip_size': 32, 'squash_size': 48, 'window': 32, 'stride': 16}
        torch.save({'state_dict': MODELS.build(model).state_dict()}, tmp_path / 'catseg.pth')
        model['vlm'] = {**vlm, 'checkpoint': 'gone.pth'}
        pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'densevlm_mm.LoadLabelMap'}, {'type': 'PackSegInputs'}]
        return Config({'default_scope': 'mmseg', 'model': model, 'test_pipeline': pipeline})

    def test_cat_seg_needs_no_file_but_its_own(self, cat_seg, tmp_path, photo):
        config = cat_seg
        inferencer = Inferencer(config, 'segment', ['moss', 'sky'], weights=tmp_path / 'catseg.pth', device='cpu')
        found = inferencer(photo)['predictions'][0]
        assert set(found['names']) <= {'moss', 'sky'} and sum(found['shares']) == pytest.approx(1)
        with pytest.raises(ValueError, match='size: set in the config'):
            Inferencer(config, 'segment', weights=tmp_path / 'catseg.pth', size=64)

    def test_one_config_serves_files_of_several_dense_modes(self, cat_seg, tmp_path):
        before, state = cat_seg.to_dict(), torch.load(tmp_path / 'catseg.pth', weights_only=True)['state_dict']
        for mode in ('csa', 'value', 'qq'):
            torch.save({'meta': {'vlm': {'dense_mode': mode}}, 'state_dict': state}, tmp_path / f'{mode}.pth')
            inferencer = Inferencer(cat_seg, 'segment', weights=tmp_path / f'{mode}.pth', device='cpu')
            assert inferencer.dense_mode == mode and cat_seg.to_dict() == before

    def test_cat_seg_sees_images_as_it_was_trained(self, cat_seg, tmp_path):
        state = torch.load(tmp_path / 'catseg.pth', weights_only=True)['state_dict']
        meta = {'vlm': {'mean': [0.5] * 3, 'std': [0.25] * 3}}
        torch.save({'meta': meta, 'state_dict': state}, tmp_path / 'half.pth')
        model = Inferencer(cat_seg, 'segment', weights=tmp_path / 'half.pth', device='cpu')._task.model
        assert model.data_preprocessor.mean.flatten().tolist() == [127.5] * 3
        assert model.data_preprocessor.std.flatten().tolist() == [63.75] * 3

    def test_weights_of_another_model_are_refused_in_a_sentence(self, cat_seg, checkpoint):
        with pytest.raises(CheckpointError, match=r'clip\.pth does not fit this CATSeg(.|\n)*Give the config'):
            Inferencer(cat_seg, 'segment', weights=checkpoint, device='cpu')

    def test_segmentors_without_weights(self, cat_seg, checkpoint, tiny_arch, photo):
        cat_seg.model.vlm.checkpoint = str(checkpoint)  # of the CLIP, and of nothing else
        with pytest.raises(ValueError, match='CATSeg of this config would have random weights.*give weights='):
            Inferencer(cat_seg, 'segment', device='cpu')
        vlm = {'arch': tiny_arch(), 'checkpoint': None}
        model = {'type': 'densevlm_mm.TrainingFreeSegmentor', 'vlm': vlm, 'vocabulary': NAMES, 'templates': TEMPLATES}
        config = Config({**cat_seg, 'model': {**model, 'window': 32, 'stride': 16}})
        with pytest.raises(ValueError, match='TrainingFreeSegmentor of this config would have random weights'):
            Inferencer(config, 'segment', device='cpu')
        config.model.vlm.checkpoint = str(checkpoint)
        assert Inferencer(config, 'segment', device='cpu')(photo)['predictions'][0]['names']

    def test_detectors_without_weights(self):
        config = Config({'default_scope': 'mmdet', 'model': {'type': 'mmdet.FasterRCNN'}})
        with pytest.raises(ValueError, match='FasterRCNN of this config would have random weights.*give weights='):
            Inferencer(config, 'detect', device='cpu')


class TestMiniWorld:
    """Whole models of configs whose scope is mmengine's, or MMDetection's, with random weights."""

    @pytest.fixture
    def load(self, miniworld, tmp_path, monkeypatch):
        monkeypatch.setenv('MINIWORLD_DATA', str(miniworld))
        monkeypatch.setenv('MINIWORLD_WEIGHTS', str(tmp_path))

        def load(name: str) -> Config:
            config = Config.fromfile(ROOT / 'configs' / 'miniworld' / f'{name}.py')
            clip = tmp_path / 'pretrain_student' / 'final.pth'
            clip.parent.mkdir()
            torch.save({'state_dict': load_vlm(config.student_arch.to_dict()).state_dict()}, clip)
            return config

        return load

    def test_cat_seg(self, load, tmp_path, photo):
        config = load('catseg_tiny_ov-miniworld_original')
        torch.save({'state_dict': MODELS.build(config.model).state_dict()}, tmp_path / 'catseg.pth')
        inferencer = Inferencer(config, 'segment', weights=tmp_path / 'catseg.pth', device='cpu')
        assert type(inferencer._task.model).__name__ == 'CATSeg' and len(inferencer.vocabulary) == 12
        found = inferencer(photo)['predictions'][0]
        assert set(found['names']) <= set(inferencer.vocabulary.names) and sum(found['shares']) == pytest.approx(1)

    def test_detects(self, load, tmp_path, photo):
        pytest.importorskip('mmdet')
        config = load('fvit_tiny_ov-miniworld_original')
        with DefaultScope.overwrite_default_scope('mmdet'):
            state = MODELS.build(config.model).state_dict()
        torch.save({'state_dict': state, 'meta': {}}, tmp_path / 'fvit.pth')
        inferencer = Inferencer(config, 'detect', weights=tmp_path / 'fvit.pth', device='cpu')
        result = inferencer(photo, return_vis=True, score_thr=0.0)
        (found,), vocabulary = result['predictions'], inferencer.vocabulary
        assert len(vocabulary) == 10 and result['visualization'][0].dtype == np.uint8
        assert found['labels'] and len(found['labels']) == len(found['bboxes']) == len(found['scores'])
        assert found['names'] == [vocabulary.names[label] for label in found['labels']]
        assert found['splits'] == [vocabulary.split[label] for label in found['labels']]
        boxes = np.array(found['bboxes'])
        assert (boxes >= 0).all() and (boxes <= [60, 90, 60, 90]).all()
        inferencer.set_vocabulary(['moss', 'car'])
        assert set(inferencer(photo)['predictions'][0]['names']) <= {'moss', 'car'}
        assert inferencer.dense_mode is None and inferencer.dense_modes == ()
        with pytest.raises(ValueError, match='the dense mode belongs to the checkpoint'):
            inferencer.dense_mode = 'csa'


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        (None, None), (['cat'], ['cat']), (['cat', 'coco_stuff'], ['cat', 'coco_stuff']),
        (['coco_stuff'], 'coco_stuff'),
        (['a.json'], 'a.json'), (['names.txt'], 'names.txt'), (['lists.py::NAMES'], 'lists.py::NAMES'),
    ],
)  # fmt: skip
def test_class_names_on_command_lines(words, expected):
    assert vocabulary_of_words(words) == expected


class TestFolders:
    @pytest.mark.parametrize('task', ['regions', 'segment', 'similarity'])
    def test_files_of_all_images(self, build, folder, tmp_path, task):
        result = build(task)(folder, out_dir=tmp_path / 'out', show_progress=False)
        assert {path.name for path in (tmp_path / 'out' / 'vis').iterdir()} == {'a_bmp.png', 'a_png.png', 'b.png'}
        stored = [json.loads(path.read_text()) for path in sorted((tmp_path / 'out' / 'preds').iterdir())]
        assert stored == result['predictions'] and len(stored) == 4
        assert 'c.png' in stored[3]['error'] and result['visualization'] == []

    def test_nothing_is_written_unasked(self, build, folder, tmp_path):
        out = tmp_path / 'out'
        build()(folder, out_dir=out, no_save_vis=True, no_save_pred=True, show_progress=False)
        assert not out.exists()
        build()(folder / 'a.png', out_dir=out, no_save_vis=True)
        assert [path.name for path in out.iterdir()] == ['preds']

    def test_batches_change_nothing(self, build, folder):
        singles = build()(folder, show_progress=False)['predictions']
        for size in (2, 4):
            batched = build()(folder, batch_size=size, show_progress=False)['predictions']
            for one, other in zip(singles[:3], batched[:3], strict=True):
                assert one['labels'] == other['labels']
                np.testing.assert_allclose(one['scores'], other['scores'], rtol=1e-4)

    def test_samples_and_pictures(self, build, folder):
        result = build()(folder, return_vis=True, return_datasamples=True, show_progress=False)
        assert [type(one) for one in result['predictions']] == [BaseDataElement] * 3 + [type(None)]
        assert len(result['visualization']) == 3
        assert all(one.dtype == np.uint8 and max(one.shape) >= 640 for one in result['visualization'])

    def test_a_damaged_image_alone_is_an_error(self, build, folder):
        with pytest.raises(BadImageError, match='c.png'):
            build()(folder / 'c.png')

    def test_a_bar_is_shown_to_the_end(self, build, folder, capsys):
        build()(folder)
        assert 'Inference' in capsys.readouterr().out
        build()(folder / 'a.png')
        assert 'Inference' not in capsys.readouterr().out


class TestRefused:
    def test_unknown_tasks(self, checkpoint):
        with pytest.raises(ValueError, match="task must be one of .* got 'caption'"):
            Inferencer(checkpoint, 'caption')

    @pytest.mark.parametrize('task', ['regions', 'segment', 'similarity'])
    def test_no_names(self, build, task):
        with pytest.raises(ValueError, match='no class names'):
            build(task, None)

    def test_a_clip_that_should_detect(self, checkpoint):
        with pytest.raises(ValueError, match='is no detector: give the config'):
            Inferencer(checkpoint, 'detect', NAMES)

    def test_random_weights(self):
        with pytest.raises(ValueError, match='random weights'):
            Inferencer('EVA02-CLIP-B-16', 'regions', NAMES)

    def test_two_checkpoints(self, checkpoint):
        with pytest.raises(ValueError, match='leave weights='):
            Inferencer(checkpoint, 'regions', NAMES, weights=checkpoint)

    def test_neither_file_nor_name(self):
        with pytest.raises(FileNotFoundError, match=r'gone\.pth does not exist'):
            Inferencer('gone.pth', 'regions', NAMES, weights='x.pth')
        with pytest.raises(FileNotFoundError, match=r'gone\.py does not exist'):
            Inferencer('gone.py', 'regions', NAMES)

    def test_a_file_of_unknown_sizes(self, tmp_path, tiny_arch):
        torch.save(load_vlm(tiny_arch()).state_dict(), tmp_path / 'bare.pth')
        with pytest.raises(ValueError, match='fits no known architecture: give arch='):
            Inferencer(tmp_path / 'bare.pth', 'regions', NAMES)
        found = Inferencer(tmp_path / 'bare.pth', 'regions', NAMES, arch=tiny_arch(), templates=TEMPLATES, device='cpu')
        assert found.vocabulary.names == tuple(NAMES)

    def test_a_damaged_checkpoint(self, tmp_path):
        (tmp_path / 'bad.pth').write_bytes(b'PK not a checkpoint')
        with pytest.raises(CheckpointError, match=r'bad\.pth'):
            Inferencer(tmp_path / 'bad.pth', 'regions', NAMES)

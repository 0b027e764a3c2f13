"""The mini world: invariants of its scenes, COCO's file formats, and writing at once or not at all."""

from __future__ import annotations

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from densevlm_mm.datasets.miniworld import (
    CATEGORIES,
    MAX_CAPTION_WORDS,
    NOVEL_THINGS,
    STUFF,
    THINGS,
    World,
    caption,
    generate_miniworld,
    miniworld_words,
    open_vocabulary,
    open_vocabulary_files,
    render_scene,
)
from densevlm_mm.datasets.miniworld import generate as generate_module
from densevlm_mm.datasets.miniworld.captions import draw_captions
from densevlm_mm.datasets.miniworld.coco_files import bounding_box, encode_ids, encode_mask
from densevlm_mm.datasets.miniworld.scene import MIN_VISIBLE_STUFF, THING_SIDE
from densevlm_mm.datasets.miniworld.shapes import SHAPES
from densevlm_mm.vlm import build_vocabulary

SPLITS = {'train2017': 9, 'val2017': 4}
SMALL = {'num_train': 9, 'num_val': 4, 'size': 48, 'seed': 3}
NAMES = {category.id: category.name for category in CATEGORIES}


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def read_json(root: Path, kind: str, split: str) -> dict:
    return json.loads((root / 'annotations' / f'{kind}_{split}.json').read_text())


def read_ids(path: Path) -> np.ndarray:
    """The ids of a panoptic PNG, decoded as COCO documents it."""
    colours = np.asarray(Image.open(path)).astype(np.int64)
    return colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]


@pytest.fixture(scope='module')
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'miniworld'
    assert generate_miniworld(root, **SMALL)
    return root


class TestClasses:
    def test_ids_have_gaps_and_things_come_first(self):
        ids = [category.id for category in CATEGORIES]
        flags = [category.isthing for category in CATEGORIES]
        assert ids == sorted(set(ids)) and ids != list(range(1, len(ids) + 1))
        assert flags == sorted(flags, reverse=True)
        assert tuple(category.name for category in CATEGORIES) == THINGS + STUFF

    def test_segment_ids_are_distinct_and_fill_three_channels(self):
        ids = np.array([category.segment_id for category in CATEGORIES])
        assert len(set(ids.tolist())) == len(CATEGORIES)
        assert ids.min() > 0 and ids.max() < 2**24
        assert all(channel.any() for channel in np.moveaxis(encode_ids(ids[None]), -1, 0))


class TestScene:
    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 2**32),
        width=st.integers(32, 112),
        height=st.integers(32, 112),
        oblong=st.floats(0, 1),
        texture_noise=st.floats(0, 1),
    )
    def test_invariants(self, seed: int, width: int, height: int, oblong: float, texture_noise: float):
        options = {'size': (width, height), 'oblong': oblong, 'texture_noise': texture_noise}
        scene = render_scene(np.random.default_rng(seed), **options)
        rows, columns = scene.segment_map.shape
        assert (columns, rows) in {(width, height), (width, height * 3 // 4), (width * 3 // 4, height)}
        assert scene.image.shape == (rows, columns, 3) and scene.image.dtype == np.uint8
        assert set(np.unique(scene.segment_map)) == {segment.id for segment in scene.segments}
        assert len({segment.category.name for segment in scene.segments}) == len(scene.segments) <= 5
        assert 1 <= len(scene.things) <= 3 and 2 <= len(scene.stuff) <= 3
        for segment in scene.segments:
            share = (scene.segment_map == segment.id).mean()
            assert share >= (0.01 if segment.category.isthing else MIN_VISIBLE_STUFF)

    def test_same_seed_same_scene(self):
        first, again, other = (render_scene(np.random.default_rng(seed)) for seed in (7, 7, 8))
        assert np.array_equal(first.image, again.image)
        assert np.array_equal(first.segment_map, again.segment_map)
        assert first.segments == again.segments
        assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)

    def test_every_class_occurs(self):
        scenes = [render_scene(np.random.default_rng(seed), size=(32, 32)) for seed in range(120)]
        assert {name for scene in scenes for name in (*scene.things, *scene.stuff)} == {*THINGS, *STUFF}
        assert {len(scene.things) for scene in scenes} == {1, 2, 3}
        assert {len(scene.stuff) for scene in scenes} == {2, 3}

    def test_last_thing_has_the_documented_box(self):
        for seed in range(60):
            scene = render_scene(np.random.default_rng(seed), size=(96, 96))
            last = scene.segment_map == scene.segments[-1].id
            longer = max(bounding_box(last)[2:]) / min(last.shape)
            assert THING_SIDE[0] - 0.05 <= longer <= THING_SIDE[1] + 0.01

    @pytest.mark.parametrize('oblong, shapes', [(0, {(64, 64)}), (1, {(64, 48), (48, 64)})])
    def test_oblong_share(self, oblong: float, shapes: set[tuple[int, int]]):
        scenes = [render_scene(np.random.default_rng(seed), oblong=oblong) for seed in range(20)]
        assert {scene.segment_map.shape for scene in scenes} == shapes

    def test_texture_noise_changes_colours_but_not_the_layout(self):
        clean, noisy = (render_scene(np.random.default_rng(1), texture_noise=noise) for noise in (0, 1))
        assert clean.segments == noisy.segments
        assert np.array_equal(clean.segment_map, noisy.segment_map)
        assert not np.array_equal(clean.image, noisy.image)

    @pytest.mark.parametrize(
        'options, named',
        [
            ({'size': (64, 16)}, 'size'),
            ({'oblong': 1.5}, 'oblong'),
            ({'texture_noise': -0.1}, 'texture_noise'),
        ],
    )
    def test_bad_options_are_named(self, options: dict, named: str):
        with pytest.raises(ValueError, match=named):
            render_scene(np.random.default_rng(0), **options)


class TestCaptions:
    def test_sentences(self):
        assert caption(['car']) == 'a photo of a car'
        assert caption(['car', 'star'], ['grass']) == 'a photo of a car and a star on grass'
        assert caption(['cup'], ['sky', 'sand']) == 'a photo of a cup on sky and sand'
        with pytest.raises(ValueError, match='at least one thing'):
            caption([], ['grass'])

    def test_longest_sentence(self):
        # Five segments share an image at most.
        longest = max(len(caption(THINGS[: 5 - count], STUFF[:count]).split()) for count in (2, 3))
        assert longest == MAX_CAPTION_WORDS

    def test_words_cover_captions_and_prompts(self):
        words = miniworld_words()
        assert words == sorted(set(words))
        prompts = [f'a photo of a {name}' for name in THINGS + STUFF]
        assert {word for text in [*prompts, caption(THINGS, STUFF)] for word in text.split()} == set(words)

    @pytest.mark.parametrize('stuff_mention', [0.0, 0.2, 1.0])
    def test_stuff_is_mentioned_at_its_rate(self, stuff_mention: float):
        rng = np.random.default_rng(0)
        options = {'count': 2000, 'stuff_mention': stuff_mention}
        words = [set(text.split()) for text in draw_captions(rng, ('car', 'boat'), ('sky', 'sand'), **options)]
        assert all({'car', 'boat'} <= said for said in words)
        for name in ('sky', 'sand'):
            assert np.mean([name in said for said in words]) == pytest.approx(stuff_mention, abs=0.04)

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 2**32), index=st.integers(0, 10_000), stuff_mention=st.floats(0, 1))
    def test_captions_name_every_thing_and_only_stuff_that_is_there(self, seed: int, index: int, stuff_mention: float):
        world = World(seed=seed, size=(32, 32), stuff_mention=stuff_mention, captions_per_image=3)
        scene, captions = world.render('train2017', index)
        assert len(captions) == 3
        for text in captions:
            words = text.split()
            assert len(words) <= MAX_CAPTION_WORDS and set(words) <= set(miniworld_words())
            assert sorted(set(words) & set(THINGS)) == sorted(scene.things)
            assert set(words) & set(STUFF) <= set(scene.stuff)


class TestMasks:
    @settings(deadline=None)
    @given(seed=st.integers(0, 2**32), height=st.integers(1, 9), width=st.integers(1, 9), share=st.floats(0, 1))
    def test_run_lengths_restore_the_mask(self, seed: int, height: int, width: int, share: float):
        mask = np.random.default_rng(seed).random((height, width)) < share
        encoded = encode_mask(mask)
        runs = np.repeat(np.arange(len(encoded['counts'])) % 2 == 1, encoded['counts'])
        assert encoded['size'] == [height, width]
        assert np.array_equal(runs.reshape((height, width), order='F'), mask)

    def test_bounding_box(self):
        mask = np.zeros((5, 7), dtype=bool)
        mask[1:4, 2] = mask[2, 5] = True
        assert bounding_box(mask) == [2, 1, 4, 3]


class TestFiles:
    @pytest.mark.parametrize('split', SPLITS)
    def test_images_are_listed_and_there(self, world: Path, split: str):
        images = read_json(world, 'panoptic', split)['images']
        written = sorted(path.name for path in (world / split).iterdir())
        assert [image['file_name'] for image in images] == written
        assert len(images) == SPLITS[split]
        for image in images:
            assert image['file_name'] == f'{image["id"]:012d}.jpg'
            assert Image.open(world / split / image['file_name']).size == (image['width'], image['height'])
        for kind in ('instances', 'captions'):
            assert read_json(world, kind, split)['images'] == images

    @pytest.mark.parametrize('split', SPLITS)
    def test_panoptic_maps_agree_with_their_segments(self, world: Path, split: str):
        panoptic = read_json(world, 'panoptic', split)
        images = {image['id']: image for image in panoptic['images']}
        for annotation in panoptic['annotations']:
            ids = read_ids(world / 'annotations' / f'panoptic_{split}' / annotation['file_name'])
            image = images.pop(annotation['image_id'])
            assert ids.shape == (image['height'], image['width'])
            assert annotation['file_name'] == image['file_name'].replace('.jpg', '.png')
            segments = annotation['segments_info']
            assert set(np.unique(ids)) == {segment['id'] for segment in segments}
            assert sum(segment['area'] for segment in segments) == ids.size
            for segment in segments:
                rows, columns = np.nonzero(ids == segment['id'])
                x, y, w, h = segment['bbox']
                assert segment['area'] == len(rows)
                assert (x, y, x + w - 1, y + h - 1) == (columns.min(), rows.min(), columns.max(), rows.max())
                assert segment['category_id'] in NAMES and segment['iscrowd'] == 0
        assert not images

    def test_pycocotools_reads_the_things(self, world: Path):
        coco_module = pytest.importorskip('pycocotools.coco')
        coco = coco_module.COCO(str(world / 'annotations' / 'instances_train2017.json'))
        assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(THINGS)
        segments = {
            (annotation['image_id'], segment['category_id']): (segment, annotation['file_name'])
            for annotation in read_json(world, 'panoptic', 'train2017')['annotations']
            for segment in annotation['segments_info']
            if NAMES[segment['category_id']] in THINGS
        }
        for annotation in coco.loadAnns(coco.getAnnIds()):
            segment, file_name = segments.pop((annotation['image_id'], annotation['category_id']))
            ids = read_ids(world / 'annotations' / 'panoptic_train2017' / file_name)
            assert np.array_equal(coco.annToMask(annotation) == 1, ids == segment['id'])
            assert all(annotation[key] == segment[key] for key in ('area', 'bbox', 'iscrowd'))
        assert not segments

    def test_ids_are_unique_over_splits(self, world: Path):
        for kind, key in (('panoptic', 'images'), ('instances', 'annotations'), ('captions', 'annotations')):
            ids = [entry['id'] for split in SPLITS for entry in read_json(world, kind, split)[key]]
            assert len(ids) == len(set(ids)) >= sum(SPLITS.values())

    def test_panoptic_categories_say_what_is_a_thing(self, world: Path):
        categories = read_json(world, 'panoptic', 'val2017')['categories']
        assert [category['name'] for category in categories] == [*THINGS, *STUFF]
        assert [category['isthing'] for category in categories] == [1] * len(THINGS) + [0] * len(STUFF)

    def test_captions_belong_to_their_images(self, world: Path):
        present = {
            annotation['image_id']: {NAMES[segment['category_id']] for segment in annotation['segments_info']}
            for annotation in read_json(world, 'panoptic', 'train2017')['annotations']
        }
        annotations = read_json(world, 'captions', 'train2017')['annotations']
        assert {annotation['image_id'] for annotation in annotations} == set(present)
        for annotation in annotations:
            names = set(annotation['caption'].split()) & {*THINGS, *STUFF}
            things = present[annotation['image_id']] & set(THINGS)
            assert things <= names <= present[annotation['image_id']]

    def test_images_show_the_scene(self, world: Path):
        scene, _ = World(seed=SMALL['seed'], size=(48, 48)).render('train2017', 0)
        stored = np.asarray(Image.open(world / 'train2017' / '000000000001.jpg')).astype(int)
        assert np.abs(stored - scene.image).mean() < 4

    def test_info_repeats_the_parameters(self, world: Path):
        info = read_json(world, 'captions', 'val2017')['info']
        assert info['version'] == str(generate_module.GENERATOR_VERSION)
        assert info['parameters']['seed'] == SMALL['seed'] and info['parameters']['size'] == [48, 48]
        assert info['parameters']['images'] == {'val2017': SPLITS['val2017']}


class TestOpenVocabulary:
    def labels(self, content: dict) -> dict[int, set[str]]:
        """Names of the labelled things of every image."""
        named = {image['id']: set() for image in content['images']}
        for annotation in content['annotations']:
            named[annotation['image_id']].add(NAMES[annotation['category_id']])
        return named

    def read(self, world: Path, part: str) -> dict:
        return json.loads(open_vocabulary_files(world)[part].read_text())

    def test_novel_things_have_base_neighbours(self):
        novel = [category for category in CATEGORIES if category.name in NOVEL_THINGS]
        base = [category for category in CATEGORIES if category.isthing and category not in novel]
        assert (len(novel), len(base)) == (3, 7)
        for category in novel:
            hue, aspect = THINGS.index(category.name), SHAPES[category.name][0]
            assert category.supercategory in {other.supercategory for other in base}
            assert {hue - 1, (hue + 1) % len(THINGS)} <= {THINGS.index(other.name) for other in base}
            assert min(abs(aspect / SHAPES[other.name][0] - 1) for other in base) < 0.2

    def test_training_labels_no_novel_thing_but_shows_some(self, world: Path):
        every = self.labels(read_json(world, 'instances', 'train2017'))
        seen = self.labels(self.read(world, 'train'))
        assert seen == {image: left for image, names in every.items() if (left := names - {*NOVEL_THINGS})}
        assert any(every[image] & {*NOVEL_THINGS} for image in seen)

    def test_absent_shows_none(self, world: Path):
        every = self.labels(read_json(world, 'instances', 'train2017'))
        absent = self.labels(self.read(world, 'train_absent'))
        assert absent == {image: names for image, names in every.items() if not names & {*NOVEL_THINGS}}
        assert 0 < len(absent) < len(every)

    def test_validation_labels_all(self, world: Path):
        assert self.read(world, 'val') == read_json(world, 'instances', 'val2017')

    def test_categories_stay_and_the_vocabulary_has_their_order(self, world: Path):
        vocabulary = build_vocabulary(str(open_vocabulary_files(world)['vocabulary']))
        assert vocabulary == open_vocabulary() and vocabulary.novel().names == NOVEL_THINGS
        for part in ('train', 'train_absent', 'val'):
            assert [category['name'] for category in self.read(world, part)['categories']] == list(vocabulary.names)

    def test_an_earlier_world_is_completed_and_otherwise_left_alone(self, tmp_path: Path):
        root = tmp_path / 'world'
        generate_miniworld(root, num_train=3, num_val=1)
        whole = files_of(root)
        for path in open_vocabulary_files(root).values():
            path.unlink()
        stamps = {path: path.stat().st_mtime_ns for path in root.rglob('*') if path.is_file()}
        assert generate_miniworld(root, num_train=3, num_val=1)
        assert files_of(root) == whole
        assert stamps.items() <= {path: path.stat().st_mtime_ns for path in root.rglob('*')}.items()
        assert not generate_miniworld(root, num_train=3, num_val=1)


class TestGenerate:
    def test_processes_do_not_change_a_byte(self, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(generate_module, 'CHUNK', 5)
        generate_miniworld(tmp_path / 'again', workers=2, **SMALL)
        assert files_of(tmp_path / 'again') == files_of(world)

    def test_val_does_not_depend_on_train(self, world: Path, tmp_path: Path):
        generate_miniworld(tmp_path / 'other', **{**SMALL, 'num_train': 0})
        expected, found = (
            {name: data for name, data in files_of(root).items() if 'val2017' in name}
            for root in (world, tmp_path / 'other')
        )
        assert found == expected and len(found) == 2 * SPLITS['val2017'] + 4

    def test_splits_and_seeds_differ(self):
        scenes = [World(seed=seed).render(split, 0)[0].image.tobytes() for seed in (0, 1) for split in SPLITS]
        assert len(set(scenes)) == 4

    def test_same_world_is_left_alone(self, tmp_path: Path):
        root = tmp_path / 'world'
        assert generate_miniworld(root, num_train=2, num_val=1)
        stamps = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
        assert not generate_miniworld(root, num_train=2, num_val=1, force=True)
        assert stamps == {path: path.stat().st_mtime_ns for path in root.rglob('*')}

    def test_other_world_needs_force(self, tmp_path: Path):
        root = tmp_path / 'world'
        generate_miniworld(root, num_train=2, num_val=1)
        before = files_of(root)
        with pytest.raises(FileExistsError, match='seed 0 instead of 1.*force'):
            generate_miniworld(root, num_train=2, num_val=1, seed=1)
        assert files_of(root) == before
        assert generate_miniworld(root, num_train=2, num_val=1, seed=1, force=True)
        assert files_of(root).keys() == before.keys() and files_of(root) != before
        assert list(tmp_path.iterdir()) == [root]

    def test_missing_file_is_noticed(self, tmp_path: Path):
        root = tmp_path / 'world'
        generate_miniworld(root, num_train=2, num_val=1)
        whole = files_of(root)
        (root / 'train2017' / '000000000002.jpg').unlink()
        with pytest.raises(FileExistsError, match='lacks files'):
            generate_miniworld(root, num_train=2, num_val=1)
        assert generate_miniworld(root, num_train=2, num_val=1, force=True)
        assert files_of(root) == whole

    def test_foreign_folder_is_never_replaced(self, tmp_path: Path):
        (tmp_path / 'coco').mkdir()
        (tmp_path / 'coco' / 'precious.jpg').write_text('mine')
        with pytest.raises(FileExistsError, match='no mini world'):
            generate_miniworld(tmp_path / 'coco', num_train=2, num_val=1, force=True)
        assert files_of(tmp_path / 'coco') == {'precious.jpg': b'mine'}

    @pytest.mark.parametrize('had_one', [False, True])
    def test_interruption_leaves_what_was_there(self, tmp_path: Path, had_one: bool):
        root = tmp_path / 'world'
        if had_one:
            generate_miniworld(root, num_train=2, num_val=1)
        before = files_of(tmp_path)

        def interrupt(done: int, total: int) -> None:
            assert files_of(tmp_path) != before, 'the interruption comes too early to mean anything'
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            generate_miniworld(root, num_train=2, num_val=1, seed=1, force=True, progress=interrupt)
        assert files_of(tmp_path) == before
        assert list(tmp_path.iterdir()) == ([root] if had_one else [])

    def test_interruption_waits_for_the_writers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        images_at_shutdown = []

        class Pool(ThreadPoolExecutor):
            """Threads instead of processes: they behave the same here and start at once."""

            def __init__(self, count: int, mp_context: object) -> None:
                super().__init__(count)

            def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
                super().shutdown(wait, cancel_futures=cancel_futures)
                images_at_shutdown.append(len(list(tmp_path.rglob('*.jpg'))))

        def interrupt(done: int, total: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(generate_module, 'ProcessPoolExecutor', Pool)
        monkeypatch.setattr(generate_module, 'CHUNK', 5)
        with pytest.raises(KeyboardInterrupt):
            generate_miniworld(tmp_path / 'world', num_train=20, workers=2, progress=interrupt)
        assert len(images_at_shutdown) == 1 and images_at_shutdown[0] >= 5
        assert not list(tmp_path.iterdir())

    def test_empty_folder_and_link_are_filled(self, tmp_path: Path):
        (tmp_path / 'disk').mkdir()
        (tmp_path / 'link').symlink_to(tmp_path / 'disk')
        assert generate_miniworld(tmp_path / 'link', num_train=1, num_val=1)
        assert (tmp_path / 'link').is_symlink() and (tmp_path / 'disk' / 'miniworld.json').is_file()

    def test_progress_counts_to_the_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(generate_module, 'CHUNK', 2)
        calls = []
        options = {'num_train': 3, 'num_val': 1, 'size': 32}
        generate_miniworld(tmp_path / 'world', **options, progress=lambda *call: calls.append(call))
        assert calls == [(2, 4), (3, 4), (4, 4)]

    @pytest.mark.parametrize(
        'options, named',
        [
            ({'num_train': -1}, 'num_train'),
            ({'size': 8}, 'size'),
            ({'seed': -1}, 'seed'),
            ({'stuff_mention': 2}, 'stuff_mention'),
            ({'captions_per_image': 0}, 'captions_per_image'),
            ({'workers': 0}, 'workers'),
        ],
    )
    def test_bad_options_are_named_and_nothing_is_written(self, tmp_path: Path, options: dict, named: str):
        with pytest.raises(ValueError, match=named):
            generate_miniworld(tmp_path / 'world', **options)
        assert not list(tmp_path.iterdir())


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    path = Path(__file__).parents[2] / 'tools' / 'dataset_converters' / 'make_miniworld.py'
    spec = importlib.util.spec_from_file_location('make_miniworld', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestTool:
    def test_writes_then_reports_up_to_date(self, tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture):
        command = [str(tmp_path / 'w'), '--train', '2', '--val', '1', '--size', '64', '48', '--workers', '1']
        assert tool.main(command) == 0
        assert capsys.readouterr().out.strip().endswith('written')
        assert read_json(tmp_path / 'w', 'panoptic', 'val2017')['info']['parameters']['size'] == [64, 48]
        assert tool.main(command) == 0
        assert capsys.readouterr().out.strip().endswith('up to date')

    def test_errors_are_one_line(self, tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture):
        assert tool.main([str(tmp_path / 'w'), '--oblong', '3']) == 2
        assert capsys.readouterr().err.startswith('error: oblong')
        assert not list(tmp_path.iterdir())

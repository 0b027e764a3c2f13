"""The demo page without its widgets: names, uploads, answers, and sentences for everything that goes wrong."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densevlm_mm.apis.demo_inputs import (
    MAX_NAMES,
    Limits,
    PageError,
    describe_upload,
    format_names,
    parse_names,
    read_names,
    read_upload,
)
from densevlm_mm.apis.demo_page import COLUMNS, OWN_MODE, DemoPage, Request, result_rows
from densevlm_mm.apis.demo_widgets import build_page, is_loopback, serve
from densevlm_mm.compat import CompatError
from densevlm_mm.vlm import Vocabulary, build_vocabulary
from densevlm_mm.vlm.vocabulary import shipped_vocabularies

NAMES = 'car, ball\nstuff: grass'
VOCABULARY = build_vocabulary({'things': ['car', 'ball'], 'stuff': ['grass']})
PREDICTIONS = {
    'regions': {
        'bboxes': [[0.0, 0.0, 4.0, 8.0], [4.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 8.0]],
        'labels': [2, 0, 1],
        'names': ['grass', 'car', 'ball'],
        'scores': [0.5, 0.875, 0.125],
    },
    'segment': {'labels': [0, 2], 'names': ['car', 'grass'], 'shares': [0.625, 0.25]},
    'similarity': {
        'labels': [0, 1, 2],
        'names': ['car', 'ball', 'grass'],
        'lowest': [0.1, -0.5, 0.25],
        'highest': [0.2, 0.75, 0.3],
    },
}


class FakeInferencer:
    """Answers at once, and remembers what it was asked."""

    def __init__(self, task: str = 'regions', dense_modes: tuple[str, ...] = ('value', 'vanilla', 'csa')) -> None:
        self.task = task
        self.dense_modes = dense_modes
        self.dense_mode = dense_modes[-1]
        self.vocabulary = VOCABULARY
        self.changes: list[Vocabulary] = []
        self.calls: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.changes.append(vocabulary)

    def __call__(self, image: Image.Image, **options: Any) -> dict[str, list]:
        if self.error is not None:
            raise self.error
        self.calls.append({'image': image, 'dense_mode': self.dense_mode, **options})
        return {'predictions': [PREDICTIONS[self.task]], 'visualization': [np.asarray(image)]}


@pytest.fixture
def picture(tmp_path) -> Path:
    """Eight by six pixels, red on the left."""
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[:, :4, 0] = 255
    Image.fromarray(pixels).save(tmp_path / 'photo.png')
    return tmp_path / 'photo.png'


@pytest.fixture
def make_page() -> Callable[..., tuple[DemoPage, dict]]:
    """A page with fakes, which are built late; and those by task and title."""

    def make(*titles: str, tasks: tuple[str, ...] = tuple(PREDICTIONS)) -> tuple[DemoPage, dict]:
        built: dict[tuple[str, str], FakeInferencer] = {}

        def maker(task: str, title: str) -> Callable[[], FakeInferencer]:
            def build() -> FakeInferencer:
                assert (task, title) not in built, 'built twice'
                return built.setdefault((task, title), FakeInferencer(task))

            return build

        models = {task: {title: maker(task, title) for title in titles or ('a',)} for task in tasks}
        return DemoPage(models, VOCABULARY), built

    return make


@pytest.mark.parametrize(('text', 'things', 'stuff'), [
    ('car, ball', ['car', 'ball'], []),
    ('car\nball\n\n car ,', ['car', 'ball'], []),
    ('traffic light\nstuff: grass, blue sky\nball', ['traffic light', 'ball'], ['grass', 'blue sky']),
    ('car\nSTUFF :\ngrass\nsky\nthings: ball\nwater', ['car', 'ball'], ['grass', 'sky', 'water']),
    ('stuff:\r\ngrass\r\nthings:\r\ncar', ['car'], ['grass']),
    ('stuffed animal', ['stuffed animal'], []),
])  # fmt: skip
def test_typed_names(text, things, stuff):
    vocabulary = parse_names(text)
    kinds = dict(zip(vocabulary.names, vocabulary.is_thing, strict=True))
    assert [name for name, is_thing in kinds.items() if is_thing] == things
    assert [name for name, is_thing in kinds.items() if not is_thing] == stuff


@pytest.mark.parametrize(('text', 'sentence'), [
    ('', 'at least one class name'),
    (' ,\nstuff:\n', 'at least one class name'),
    ('car\nstuff: grass, car', '"car" is in both lists'),
    ('a' * 101, 'put commas between the names'),
    (','.join(f'name {i}' for i in range(MAX_NAMES + 1)), f'at most {MAX_NAMES} are taken'),
])  # fmt: skip
def test_names_that_cannot_be(text, sentence):
    with pytest.raises(PageError, match=sentence):
        parse_names(text)


@pytest.mark.parametrize('name', shipped_vocabularies())
def test_vocabularies_come_back_from_their_text(name):
    vocabulary = build_vocabulary(name)
    parsed = parse_names(format_names(vocabulary))
    expected = vocabulary.things_first()
    assert parsed.names == tuple(name.strip() for name in expected.names)
    assert parsed.is_thing == expected.is_thing


def test_untouched_text_means_the_vocabulary_itself():
    vocabulary = build_vocabulary({'things': ['sofa'], 'synonyms': {'sofa': ['sofa', 'couch']}, 'novel': ['sofa']})
    assert read_names('sofa\n', vocabulary) is vocabulary
    assert read_names('sofa, car', vocabulary).synonyms == (('sofa',), ('car',))


def test_upload_is_upright_rgb_and_small(tmp_path):
    image = Image.new('L', (60, 40), 100)
    exif = image.getexif()
    exif[274] = 6  # lying on its side
    image.save(tmp_path / 'grey.jpg', exif=exif)
    read = read_upload(tmp_path / 'grey.jpg', Limits(side=30))
    assert (read.mode, read.size) == ('RGB', (20, 30))
    assert np.abs(np.asarray(read).astype(int) - 100).max() <= 2
    assert read_upload(tmp_path / 'grey.jpg', Limits(side=60)).size == (40, 60)


def test_upload_within_the_limits_is_left_alone(picture):
    assert np.array_equal(np.asarray(read_upload(picture, Limits(pixels=48))), np.asarray(Image.open(picture)))


@pytest.mark.parametrize(('content', 'limits', 'sentence'), [
    (b'just words', Limits(), 'x.png is not an image, or a damaged one. Choose another'),
    (b'', Limits(), 'x.png is empty'),
    (lambda data: data[:-25], Limits(), 'x.png is damaged: it ends too early'),
    (lambda data: data, Limits(pixels=47), 'x.png has 8 x 6 pixels; at most 4.7e-05 million'),
    (b' ' * 2**21, Limits(megabytes=1.5), r'x.png has 2.0 MB; at most 1.5 MB are taken'),
])  # fmt: skip
def test_uploads_that_cannot_be(picture, tmp_path, content, limits, sentence):
    (tmp_path / 'x.png').write_bytes(content if isinstance(content, bytes) else content(picture.read_bytes()))
    with pytest.raises(PageError, match=sentence) as caught:
        read_upload(tmp_path / 'x.png', limits)
    assert str(tmp_path) not in str(caught.value)


def test_bomb_is_refused_unopened(tmp_path, monkeypatch):
    Image.new('1', (64, 64)).save(tmp_path / 'bomb.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with pytest.raises(PageError, match='bomb.png has too many pixels; at most 40 million'):
        read_upload(tmp_path / 'bomb.png', Limits())


def test_no_upload_and_one_that_is_gone(tmp_path):
    with pytest.raises(PageError, match='Choose an image first'):
        read_upload(None, Limits())
    with pytest.raises(PageError, match='gone.png cannot be read'):
        read_upload(tmp_path / 'gone.png', Limits())


@pytest.mark.parametrize('key', ['megabytes', 'pixels', 'side'])
def test_limits_of_nothing(key):
    with pytest.raises(ValueError, match=f"above 0, got {{'{key}': 0}}"):
        Limits(**{key: 0})


def test_shrunk_images_are_said_to_be(picture):
    assert describe_upload(picture, read_upload(picture, Limits(side=4))) == 'photo.png: 4 x 3 px (shrunk)'


def test_preview(make_page, picture, tmp_path):
    page, built = make_page()
    message, image = page.preview(str(picture))
    assert message == 'photo.png: 8 x 6 px' and image.size == (8, 6)
    (tmp_path / 'words.png').write_text('words')
    assert page.preview(str(tmp_path / 'words.png'))[0].startswith('words.png is not an image')
    assert page.preview(str(tmp_path / 'words.png'))[1] is None and page.preview(None) == ('', None)
    assert not built


def test_answer_of_one_model(make_page, picture):
    page, built = make_page()
    answer = page.run(Request(str(picture), NAMES, 'regions', 0.25, 3))
    assert answer.message == 'photo.png: 8 x 6 px'
    assert answer.columns == list(COLUMNS['regions'])
    assert answer.rows == [['car', 'thing', 87.5, '4, 0, 8, 8'], ['grass', 'stuff', 50.0, '0, 0, 4, 8']]
    assert answer.to_json()[0]['class'] == 'car' and len(answer.to_json()) == 2
    ((title, shown),) = answer.pictures
    assert title == 'a' and np.array_equal(shown, np.asarray(Image.open(picture)))
    (call,) = built['regions', 'a'].calls
    assert (call['score_thr'], call['grid'], call['return_vis']) == (0.25, (3, 3), True)
    assert list(built) == [('regions', 'a')]


def test_answer_of_nothing(make_page, picture):
    answer = make_page()[0].run(Request(str(picture), NAMES, score_thr=0.9))
    assert answer.message == 'photo.png: 8 x 6 px; nothing is above the threshold'
    assert answer.rows == [] and len(answer.pictures) == 1


def test_answers_of_two_models_stand_side_by_side(make_page, picture):
    page, built = make_page('before', 'after')
    answer = page.run(Request(str(picture), NAMES, 'segment'))
    assert page.num_pictures == 2 and [title for title, _ in answer.pictures] == ['before', 'after']
    assert answer.columns[0] == 'model' and {row[0] for row in answer.rows} == {'before', 'after'}
    assert set(built) == {('segment', 'before'), ('segment', 'after')}


def test_models_and_vocabulary_are_kept(make_page, picture):
    page, built = make_page()
    for names in (NAMES, 'car, ball\nstuff: cup', 'car, ball\nstuff: cup'):
        page.run(Request(str(picture), names))
    assert len(built) == 1
    assert [change.names for change in built['regions', 'a'].changes] == [('car', 'ball', 'cup')]


def test_dense_modes(make_page, picture):
    page, built = make_page('a', 'b')
    page.models['regions']['b'] = lambda: built.setdefault(('regions', 'b'), FakeInferencer('regions', ('csa', 'qq')))
    assert page.dense_modes() == [OWN_MODE, 'csa']
    for mode in ('csa', OWN_MODE):
        page.run(Request(str(picture), NAMES, dense_mode=mode))
    assert [call['dense_mode'] for call in built['regions', 'b'].calls] == ['csa', 'qq']


def test_detectors_keep_their_dense_mode(picture):
    detector = FakeInferencer()
    detector.task = 'regions'  # whose predictions look the same
    page = DemoPage({'detect': {'a': lambda: detector}}, VOCABULARY)
    page.run(Request(str(picture), NAMES, 'detect', dense_mode='value'))
    assert detector.calls[0]['dense_mode'] == 'csa'


def test_rows_of_pixels_and_cosines():
    assert result_rows('segment', PREDICTIONS['segment'], VOCABULARY) == [
        ['car', 'thing', 62.5],
        ['grass', 'stuff', 25.0],
    ]
    assert result_rows('similarity', PREDICTIONS['similarity'], VOCABULARY) == [
        ['ball', 'thing', -0.5, 0.75],
        ['grass', 'stuff', 0.25, 0.3],
        ['car', 'thing', 0.1, 0.2],
    ]


@pytest.mark.parametrize(('error', 'sentence'), [
    (ValueError("unknown words ['zebra']"), r"This cannot be shown: unknown words \['zebra'\]"),
    (torch.OutOfMemoryError('CUDA'), 'not enough memory'),
    (KeyError('secret'), r'Something went wrong \(KeyError\); the terminal says more'),
])  # fmt: skip
def test_no_error_reaches_the_page_raw(make_page, picture, error, sentence):
    page, built = make_page()
    page.prepare('regions')
    built['regions', 'a'].error = error
    with pytest.raises(PageError, match=sentence):
        page.run(Request(str(picture), NAMES))
    built['regions', 'a'].error = None
    assert page.run(Request(str(picture), NAMES)).pictures


def test_unknown_tasks():
    with pytest.raises(ValueError, match=r"some of \['regions'.*got \['dream'\]"):
        DemoPage({'dream': {}}, VOCABULARY)


@pytest.mark.parametrize(('host', 'inside'), [
    ('127.0.0.1', True), ('127.9.9.9', True), ('::1', True), ('localhost', True),
    ('0.0.0.0', False), ('::', False), ('192.168.1.2', False), ('example.org', False),
])  # fmt: skip
def test_loopback(host, inside):
    assert is_loopback(host) is inside


def test_without_gradio_the_extra_is_named(make_page, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(CompatError, match=r"pip install 'densevlm_mm\[demo\]'"):
        build_page(make_page()[0])


def test_requests_are_filled_in_the_order_of_the_widgets(make_page):
    pytest.importorskip('gradio')
    page, _ = make_page('a', 'b')
    blocks = build_page(page)
    upload_event, run_event = sorted(blocks.fns.values(), key=lambda event: len(event.inputs))
    assert [widget.label for widget in run_event.inputs] == [
        'Image', 'Class names', 'Show', 'Threshold', 'Grid', 'Dense mode',
    ]  # fmt: skip
    assert upload_event.inputs == run_event.inputs[:1] and upload_event.outputs == run_event.outputs
    values = [widget.value for widget in run_event.inputs]
    assert values == [None, NAMES, 'regions', 0.3, 4, OWN_MODE]
    assert Request(*values) == Request(None, NAMES)
    assert not blocks.analytics_enabled
    assert all(event.api_visibility == 'private' for event in blocks.fns.values())


def test_port_that_is_taken(make_page):
    pytest.importorskip('gradio')
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f'127.0.0.1:{port} cannot be listened to.*choose another'):
            serve(make_page()[0], port=port)

"""The demo page's widgets (Gradio), and how they are served."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from densevlm_mm.compat import CompatError

from .demo_inputs import PageError, format_names
from .demo_page import COLUMNS, DemoPage, Request

if TYPE_CHECKING:
    from gradio import Blocks
    from gradio.components import Component

TITLE = 'densevlm_mm'
_LABELS = {
    'regions': 'regions of a grid',
    'segment': 'segmentation',
    'detect': 'detection',
    'similarity': 'similarity maps',
}
_WELCOME = 'Choose an image, type class names, press Run.'
_INTRODUCTION = """# densevlm_mm: what does this model see, and where?
Images stay on the machine that serves this page."""
# title and buttons beside the picture, not on it
_CSS = '.picture .image-container {padding-top: 36px}'
# uploads and pictures are deleted at most two hours later, and when the page ends
_DELETE = (3600, 3600)


def require_gradio() -> ModuleType:
    """Gradio, told to send nothing home.

    Raises:
        CompatError: If it is missing.
    """
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise CompatError(
            f"the demo page needs Gradio, but {error.name} is missing: pip install 'densevlm_mm[demo]'"
        ) from error
    return gradio


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server of that name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def build_page(page: DemoPage) -> Blocks:
    """The page, not yet served.

    Raises:
        CompatError: If Gradio is missing.
    """
    gr = require_gradio()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=_DELETE) as blocks:
        gr.Markdown(_INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                inputs = _add_inputs(gr, page)
                run = gr.Button('Run', variant='primary', elem_id='run')
            with gr.Column(scale=5, min_width=300):
                message, *results = _add_results(gr, page)
        private = {'api_visibility': 'private', 'concurrency_id': 'page'}
        outputs = [message, *results]
        inputs[0].change(_preview(gr, page), inputs[0], outputs, **private)
        run.click(_run(gr, page), inputs, outputs, concurrency_limit=1, scroll_to_output=True, **private)
    return blocks


def serve(page: DemoPage, *, host: str = '127.0.0.1', port: int = 7860) -> str:
    """Serve the page from threads of this process.

    Args:
        page: What to serve.
        host: Address to listen on.
        port: And its port.

    Returns:
        The address for a browser.

    Raises:
        CompatError: If Gradio is missing.
        OSError: If the port is taken or the address is not one of this machine.
    """
    gr = require_gradio()
    blocks = build_page(page)
    # fonts that every machine has, and explanations dark enough to be read
    theme = gr.themes.Base(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'])
    theme.set(block_info_text_color='*neutral_600', block_info_text_color_dark='*neutral_300')
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            theme=theme,
            css=_CSS,
            max_file_size=int(page.limits.megabytes * 2**20),
            share=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
        )
    except OSError as error:
        message = f'{host}:{port} cannot be listened to: the port is taken, or the address is not of this machine'
        raise OSError(f'{message}; choose another one') from error
    return address


def _add_inputs(gr: ModuleType, page: DemoPage) -> list[Component]:
    """In the order of the fields of `Request`."""
    modes = page.dense_modes()
    return [
        gr.File(label='Image', type='filepath', height=120, elem_id='upload'),
        gr.Textbox(
            value=format_names(page.vocabulary),
            label='Class names',
            info='Between commas or one a line; a line "stuff: grass, sky" marks what is not countable.',
            lines=4,
            max_lines=10,
            elem_id='names',
        ),
        gr.Radio([(_LABELS[task], task) for task in page.tasks], value=page.tasks[0], label='Show', elem_id='task'),
        gr.Slider(
            0, 1, value=Request.score_thr, step=0.01, label='Threshold', info='Confidence of regions and detections'
        ),
        gr.Slider(1, 12, value=Request.grid, step=1, label='Grid', info='Rows and columns of the regions'),
        gr.Dropdown(
            modes, value=modes[0], label='Dense mode', info='How the last block makes dense features', elem_id='mode'
        ),
    ]


def _add_results(gr: ModuleType, page: DemoPage) -> list[Component]:
    message = gr.Textbox(_WELCOME, label='Message', interactive=False, lines=1, max_lines=8, elem_id='message')
    with gr.Row():
        pictures = [
            gr.Image(
                label='Picture',
                interactive=False,
                format='png',
                buttons=['download', 'fullscreen'],
                min_width=280,
                visible=i == 0,
                elem_id=f'picture{i}',
                elem_classes='picture',
            )
            for i in range(page.num_pictures)
        ]
    table = gr.Dataframe(
        headers=list(COLUMNS[page.tasks[0]]),
        label='Table',
        interactive=False,
        wrap=True,
        max_height=360,
        elem_id='table',
    )
    with gr.Accordion('JSON', open=False):
        json = gr.JSON(show_label=False, elem_id='json')
    return [message, *pictures, table, json]


def _preview(gr: ModuleType, page: DemoPage) -> Callable[[str | None], list]:
    def preview(path: str | None) -> list:
        message, image = page.preview(path)
        shown = [] if image is None else [('Image', image)]
        return [message or _WELCOME, *_pictures(gr, page, shown), gr.update(value=[]), None]

    return preview


def _run(gr: ModuleType, page: DemoPage) -> Callable[..., list]:
    def run(*values: Any) -> list:
        try:
            answer = page.run(Request(*values))
        except PageError as error:
            return [str(error), *_pictures(gr, page, []), gr.update(value=[]), None]
        table = gr.update(value=answer.rows, headers=answer.columns)
        return [answer.message, *_pictures(gr, page, answer.pictures), table, answer.to_json()]

    return run


def _pictures(gr: ModuleType, page: DemoPage, shown: Sequence[tuple[str, Any]]) -> list[dict]:
    """Updates of all pictures: these by title, the first empty if there are none, the rest hidden."""
    updates = [gr.update(value=picture, label=title, alt_text=title, visible=True) for title, picture in shown]
    hidden = [gr.update(value=None, label='Picture', visible=not shown and i == 0) for i in range(page.num_pictures)]
    return updates + hidden[len(shown) :]

"""Builds and installs ``densevlm_mm``; the tools' settings live in ``pyproject.toml``."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = 'densevlm_mm'
# What `mim` and `_base_ = "densevlm_mm::..."` look for in the package's `.mim` folder.
MIM_EXTENSION = ('configs', 'tools', 'model-index.yml')

REQUIRES = [
    'torch>=2.6',  # opens mmengine's checkpoints with weights_only
    'torchvision',
    'numpy>=1.24',
    'Pillow',
    'open_clip_torch>=3.0,<4',
    'timm>=1.0.17',
    'safetensors',
    'pycocotools',
    'packaging',
]
# mmcv is no hard requirement: pip would build it with no torch in sight, that is, without compiled operators.
# `openmmlab` and `onedl` own the same import names; take one of them.
EXTRAS = {
    # pure Python: for DenseVLM itself and for regions and similarity of your own images
    'lite': ['mmengine>=0.11.0rc3,<1', 'mmcv-lite>=2.1,<2.2'],
    'openmmlab': ['mmengine>=0.11.0rc3,<1', 'mmcv>=2.1,<2.2', 'mmdet==3.3.0', 'mmsegmentation==1.2.2'],
    'onedl': [
        'onedl-mmengine>=0.10.12',
        'onedl-mmcv>=2.3.6',
        'onedl-mmdetection>=3.5.1',
        'onedl-mmsegmentation>=1.4.2',
    ],
    'demo': ['gradio>=6,<7'],
    'dev': ['pytest', 'pytest-xdist', 'hypothesis', 'pyyaml', 'selenium', 'ruff'],
}


def read_version() -> str:
    """The version, read as text so that building the package does not import it."""
    source = (ROOT / PACKAGE / 'version.py').read_text(encoding='utf-8')
    match = re.search(r"^__version__ = '([^']+)'$", source, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"{PACKAGE}/version.py must hold a line __version__ = 'X.Y.Z'")
    return match.group(1)


def read_readme() -> str:
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.is_file() else ''


def add_mim_extension(package_dir: Path, *, link: bool) -> None:
    """Puts configs, tools and the model index into ``package_dir/.mim``.

    Args:
        package_dir: the package's folder, in the checkout (editable install) or in the build tree (wheel).
        link: relative symbolic links instead of copies, so that an editable install follows the checkout.
    """
    mim = package_dir / '.mim'
    shutil.rmtree(mim, ignore_errors=True)
    mim.mkdir(parents=True)
    for name in MIM_EXTENSION:
        source = ROOT / name
        if not source.exists():
            continue
        if link:
            (mim / name).symlink_to(os.path.relpath(source, mim), target_is_directory=source.is_dir())
        elif source.is_dir():
            shutil.copytree(source, mim / name, ignore=shutil.ignore_patterns('__pycache__', '.*'))
        else:
            shutil.copy2(source, mim / name)


class BuildWithMim(build_py):
    """Adds the ``.mim`` folder: linked into the checkout by an editable install, copied into a wheel."""

    def run(self) -> None:
        super().run()
        if getattr(self, 'editable_mode', False):
            add_mim_extension(ROOT / PACKAGE, link=True)
        else:
            add_mim_extension(Path(self.build_lib) / PACKAGE, link=False)


setup(
    name=PACKAGE,
    version=read_version(),
    description='DenseVLM for MMDetection and MMSegmentation: CLIP models with dense features',
    long_description=read_readme(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE', 'CITATION.cff', 'CHANGELOG.md'],  # beside the metadata; all three travel in a wheel
    keywords=['CLIP', 'open-vocabulary', 'object detection', 'semantic segmentation', 'OpenMMLab'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX',
        'Programming Language :: Python :: 3 :: Only',
        'Programming Language :: Python :: 3.11',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={PACKAGE: ['**/*.json', '**/*.txt', '**/*.yaml', '**/*.yml']},
    python_requires='>=3.10',
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)

"""DenseVLM for OpenMMLab: CLIP models whose dense features speak the language of regions.

Importing this package loads nothing but the version. Each floor is imported by name: ``densevlm_mm.vlm``
needs torch and open_clip only, ``densevlm_mm.models`` and its neighbours need mmengine, ``densevlm_mm.det``
and ``densevlm_mm.seg`` need MMDetection and MMSegmentation.
"""

from densevlm_mm.version import __version__

__all__ = ['__version__']

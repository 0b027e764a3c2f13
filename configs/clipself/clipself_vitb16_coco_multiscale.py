# Each step trains at one of four resolutions.
_base_ = './clipself_vitb16_coco.py'
model = dict(multiscale=(320, 640, 896, 1024))

# SA-1B in its tar files: the images only.
_base_ = './image_folder_grid_512.py'

train_dataloader = dict(
    # of a thousand files, eight are read at a time
    sampler=dict(window=8),
    dataset=dict(type='densevlm_mm.TarImageDataset', data_root='data/sa1b'),
)

# Training images of Objects365, v1 or v2. Without the annotation file, which lists some images that no archive holds.
_base_ = './image_folder_grid_512.py'

train_dataloader = dict(dataset=dict(data_root='data/objects365', data_prefix=dict(img_path='train')))

import numpy as np
from PIL import Image

from clipsep_jax.data_prep.decode.pictures import crop_square


def test_pictures_are_cropped_square_like_resizing_then_cropping(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 161, 3), dtype=np.uint8)
    for picture in (Image.fromarray(pixels), Image.fromarray(pixels.transpose(1, 0, 2).copy())):
        longer = int(224 * 161 / 90)
        sides = (longer, 224) if picture.width > picture.height else (224, longer)
        resized = picture.resize(sides, Image.Resampling.BICUBIC)
        left, top = round((sides[0] - 224) / 2), round((sides[1] - 224) / 2)
        wanted = np.asarray(resized.crop((left, top, left + 224, top + 224)), np.int16)
        assert np.abs(np.asarray(crop_square(picture), np.int16) - wanted).max() <= 1
    assert crop_square(Image.new("RGB", (1, 8192))).size == (224, 224)

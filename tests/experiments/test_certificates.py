"""Certified images and tampering: the pages agree with the JSON files, and images share files."""

import io
import json

import numpy as np
from PIL import Image

from experiments import certificates, tampering
from experiments.harness import RESULTS
from fd_keras import certified_table
from fd_keras.jpeg import encode_jpeg


def test_pages_agree_with_their_json_files():
    for experiment in (certificates, tampering):
        results = json.loads((RESULTS / experiment.FILE).read_text())
        page = RESULTS / experiment.FILE.replace(".json", ".md")
        assert page.read_text(encoding="utf-8") == experiment.page(results)


def test_all_encoded_images_are_certified():
    """What is claimed of images as they are encoded, and of their files."""
    results = json.loads((RESULTS / certificates.FILE).read_text())
    for found in results.values():
        for row in found["rows"].values():
            assert row["png"]["certified"] == row["jpeg"]["certified"] == found["images"]


def test_images_that_share_a_file_are_decoded_as_from_their_own(photos):
    images = np.stack([photos[0, 96:128, :40], photos[1, 96:128, :40]])
    table = certified_table(2, color_space="ycbcr")
    own = [np.asarray(Image.open(io.BytesIO(encode_jpeg(image, table)))) for image in images]
    np.testing.assert_array_equal(certificates.after_jpeg(images, table), own)
    assert certificates.own_files(images, own, table) > 0


def test_handling(photos):
    """What is said to be innocent keeps the size, and changes something where it says so."""
    image = photos[1, 100:132, 200:240]
    for kind, change in tampering.HANDLING.items():
        changed = change(image)
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        assert np.array_equal(changed, image) == (kind in ("nothing", "lossless copy"))

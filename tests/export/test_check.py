"""The limits by which an export is judged."""

import pytest

from fd_keras.export.check import ExportCheck, RuntimeCheck


@pytest.mark.parametrize(
    ("quantize", "images", "other", "passed"),
    [
        ("int8", 32, 1, True),  # 96.9 %, as half of all samples from 97 % are
        ("int8", 100, 6, True),
        ("int8", 100, 7, False),
        ("int8", 1000, 40, False),
        ("int8", 2, 2, False),
        ("none", 100, 3, True),
        ("none", 100, 4, False),
        ("none", 1000, 0, True),
    ],
)
def test_one_image_of_a_few_is_no_proof_of_a_wrong_class(quantize, images, other, passed):
    run = RuntimeCheck("LiteRT", 0, 0, 0.0, 1 - other / images, 0.0, True, 1.0)
    check = ExportCheck("model.tflite", "tflite", quantize, 1000, images, {}, (run,))
    assert check.passed is passed, check.problems

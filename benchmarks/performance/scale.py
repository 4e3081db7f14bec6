"""Sizes and repetitions of a full run and of a smoke test."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Sizes and repetitions of a run.

    Args:
        size: Height and width of the images that the goals are about.
        batch: Number of images in their batch.
        large: Height and width of the one large image.
        sizes: Heights and widths to compare.
        batches: Batch sizes to compare.
        most_pixels: Limit of pixels in a batch; a float32 copy takes 12 bytes for each.
        threads: Numbers of TensorFlow's intra-op threads.
        rounds: Rounds of each measurement.
        budget: Seconds after which a measurement begins no further round.
        images: Images for most steps of the pipeline.
        statistics: Images from which a table is designed.
        trials: Trials of a search.
        processes: Processes over which a start-up time is the median.
        mobilenet: Whether the classifier is MobileNetV2 or a few convolutions.
    """

    size: int
    batch: int
    large: int
    sizes: tuple
    batches: tuple
    most_pixels: int
    threads: tuple
    rounds: int
    budget: float
    images: int
    statistics: int
    trials: int
    processes: int
    mobilenet: bool


FULL = Scale(
    size=224,
    batch=32,
    large=2048,
    sizes=(32, 224, 512, 2048),
    batches=(1, 32, 256),
    most_pixels=2**24,
    threads=(1, 2),
    rounds=15,
    budget=8,
    images=200,
    statistics=1000,
    trials=60,
    processes=5,
    mobilenet=True,
)

SMOKE = Scale(
    size=16,
    batch=2,
    large=32,
    sizes=(8, 16),
    batches=(1,),
    most_pixels=8**2,
    threads=(2,),
    rounds=1,
    budget=0,
    images=10,
    statistics=10,
    trials=2,
    processes=1,
    mobilenet=False,
)

"""How large a run is: what the results are taken from, or as little as shows that it works."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Sizes and repetitions of a run.

    Args:
        size: Height and width of the images that the goals speak of.
        batch: How many of them at once.
        large: Height and width of one large image.
        sizes: Heights and widths that are compared.
        batches: Batches that are compared.
        most_pixels: Batches of more pixels are left out; a float32 copy takes 12 bytes of each.
        threads: TensorFlow's threads within an operation.
        rounds: Of each measurement.
        budget: Seconds after which a measurement takes no further round.
        images: For most steps of the pipeline.
        statistics: Images that a table is designed for.
        trials: Of a search.
        processes: New processes whose median is a start-up time.
        mobilenet: Whether MobileNetV2 stands behind the layer, or a few convolutions.
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

"""The layer, a memory pass and quick baselines at many sizes and batches."""

import itertools

from benchmarks.performance import cases as c


def measure(scale):
    """Rows for each pair of size and batch, timed in turns within the pair."""
    rows, left_out = [], []
    for size, batch in itertools.product(scale.sizes, scale.batches):
        if batch * size**2 > scale.most_pixels:
            reason = f"more than {scale.most_pixels / 1e6:.1f} megapixels at once"
            left_out.append({"what": f"{size}x{size}, batch {batch}", "reason": reason})
        else:
            found = _cases(c.random_images(batch, size), scale)
            rows += c.measured(list(found), scale)
    return {"rows": rows, "not_run": left_out}


def _cases(images, scale):
    layer = c.built("liu2019")
    yield from c.memory_pass(images)
    yield from c.in_modes(c.LAYER, layer, images)
    yield from c.in_modes(c.GRADIENT, c.gradient_of(layer), images)
    yield from c.in_modes("layer, one channel", c.built(channels=1), images[..., :1])
    yield from c.in_modes(c.SIGNAL, c.built(dct_method="signal"), images, ("graph",))
    yield c.libjpeg(images, scale.threads[-1])

"""Feature distillation in float64, written from its definition with scipy and loops.

Nothing here comes from fd_keras: neither constants nor code.
"""

import numpy as np
from scipy.fft import dctn, idctn

# Bayer's 8x8 ordered-dither matrix: entry n of the sequence is the cell that holds n.
BAYER_2 = np.array([[0, 2], [3, 1]])
BAYER_4 = np.block([[4 * BAYER_2, 4 * BAYER_2 + 2], [4 * BAYER_2 + 3, 4 * BAYER_2 + 1]])
BAYER_8 = np.block([[4 * BAYER_4, 4 * BAYER_4 + 2], [4 * BAYER_4 + 3, 4 * BAYER_4 + 1]])


def to_ycbcr(rgb):
    """JFIF full range, centred on zero."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return np.stack([y - 128, (b - y) / 1.772, (r - y) / 1.402], -1)


def to_rgb(ycbcr):
    y, cb, cr = ycbcr[..., 0] + 128, ycbcr[..., 1], ycbcr[..., 2]
    r, b = y + 1.402 * cr, y + 1.772 * cb
    return np.stack([r, (y - 0.299 * r - 0.114 * b) / 0.587, b], -1)


def quantise(coefficients, step):
    return step * np.round(coefficients / step + 1 / 997)


def soften(coefficients, step):
    """Soft thresholding as Donoho writes it, with DC as it is."""
    shrunk = np.sign(coefficients) * np.maximum(np.abs(coefficients) - step / 2, 0)
    shrunk[0, 0] = coefficients[0, 0]
    return shrunk


def tie_distance(coefficients, step):
    """How far from jumping to the next step, in grey levels of the coefficient."""
    scaled = coefficients / step + 1 / 997 + 0.5
    return step * np.abs(scaled - np.round(scaled))


def distil_plane(plane, steps, offset, quantizer="round"):
    """One channel on one block grid; also each pixel's distance from a tie in its block."""
    (height, width), (dy, dx) = plane.shape, offset
    bottom, right = -(height + dy) % 8, -(width + dx) % 8
    soft = quantizer == "soft"
    padded = np.pad(plane, ((dy, bottom), (dx, right)), mode="symmetric" if soft else "edge")
    out, distance = np.empty_like(padded), np.empty_like(padded)
    for top in range(0, padded.shape[0], 8):
        for left in range(0, padded.shape[1], 8):
            block = np.s_[top : top + 8, left : left + 8]
            coefficients = dctn(padded[block], norm="ortho")
            changed = soften(coefficients, steps) if soft else quantise(coefficients, steps)
            out[block] = idctn(changed, norm="ortho")
            distance[block] = np.inf if soft else tie_distance(coefficients, steps).min()
    inner = np.s_[dy : dy + height, dx : dx + width]
    return out[inner], distance[inner]


def distil(images, steps, color_space="rgb", cycle_spins=1, quantizer="round"):
    """Distil (n, h, w, c) images on 0..255.

    Returns the images, clipped, and for each pixel (n, h, w) the distance from a tie.
    """
    images = np.asarray(images, np.float64)
    channels = images.shape[-1]
    steps = np.broadcast_to(np.asarray(steps, np.float64), (channels, 8, 8))
    convert = color_space == "ycbcr" and channels == 3
    shift = 128 if color_space == "ycbcr" else 0
    planes = to_ycbcr(images) if convert else images - shift
    sequence = [tuple(int(i) for i in np.argwhere(n == BAYER_8)[0]) for n in range(64)]
    total, nearest = np.zeros_like(planes), np.full(images.shape[:3], np.inf)
    for offset in sequence[:cycle_spins]:
        for n in range(len(images)):
            for c in range(channels):
                out, distance = distil_plane(planes[n, ..., c], steps[c], offset, quantizer)
                total[n, ..., c] += out / cycle_spins
                nearest[n] = np.minimum(nearest[n], distance)
    result = to_rgb(total) if convert else total + shift
    return np.clip(result, 0, 255), nearest

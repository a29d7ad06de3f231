"""How a target is fed, and images to prove a freshly built target on."""

from __future__ import annotations

import numpy as np

from stages.runtimes.base import Source


def as_input(images: np.ndarray, source: Source) -> np.ndarray:
    """Return images the way a file takes them.

    Args:
        images: uint8 (n, H, W, C).
        source: of its fields, `input`, `mean` and `std` count.

    Returns:
        The same images, or for a plain graph float32 (n, C, H, W), scaled to 0..1 and normalised by mean and
        std. The array is contiguous and writeable, because some runtimes need that of memory that they share;
        it is copied if need be.
    """
    if source.input == "uint8_nhwc":
        return np.require(images, requirements=("C", "W"))
    mean = np.asarray(source.mean, np.float32)
    std = np.asarray(source.std, np.float32)
    scaled = (images.astype(np.float32) / np.float32(255.0) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def proof_images(source: Source, count: int) -> np.ndarray:
    """Return images to prove a target on, uint8 (n, H, W, C).

    They are up to `count` of the source's real images, evenly spread, and two generated ones; without real
    images `count` generated ones.
    """
    if source.images is None:
        return natural_images(source.image_shape, count)
    real = np.load(source.images, mmap_mode="r", allow_pickle=False)
    chosen = np.linspace(0, len(real) - 1, min(count, len(real))).astype(np.int64)
    return np.concatenate([real[chosen], natural_images(source.image_shape, 2)])


def natural_images(image_shape: tuple[int, int, int], count: int, seed: int = 0) -> np.ndarray:
    """Generate images with the statistics of photographs, uint8 (count, H, W, C), without any data set.

    The amplitude of spatial frequency f falls like 1/f, like in natural images (D. J. Field,
    "Relations between the statistics of natural images and the response properties of cortical
    cells", 1987); channels are correlated, brightness and contrast vary from image to image.
    White noise would drive no filter of a trained network the way a photograph does.
    """
    height, width, channels = image_shape
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    amplitude = 1.0 / np.maximum(frequency, 1.0 / max(height, width))
    amplitude[0, 0] = 0.0
    images = np.empty((count, height, width, channels), np.uint8)
    for index in range(count):
        planes = np.stack([_noise(random, amplitude, (height, width)) for _ in range(channels + 1)])
        mixed = 0.8 * planes[:1] + 0.6 * planes[1:]
        brightness, contrast = random.uniform(70.0, 190.0), random.uniform(25.0, 75.0)
        images[index] = np.clip(mixed * contrast + brightness, 0.0, 255.0).transpose(1, 2, 0)
    return images


def _noise(random: np.random.Generator, amplitude: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return one plane of unit variance whose spectrum has this amplitude and random phases."""
    spectrum = amplitude * np.exp(2j * np.pi * random.random(amplitude.shape))
    plane = np.fft.irfft2(spectrum, shape)
    return plane / max(float(plane.std()), 1e-12)

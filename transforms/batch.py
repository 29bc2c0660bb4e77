"""The same augmentation on a whole batch at once, on the batch's own device: one resampling for all that moves.

Images are (n, channels, rows, columns) in 0-1, the parameters a `transforms.drawing.Drawn` of n rows. In this order: moved (bilinear,
the edges drawn out), sampled coarsely, blurred, sharpened, gamma, black and white points, contrast about the image's own mean, noise,
cutout, cut to 0-1. What an option drew nothing for passes it unchanged to the last bit.
Parameters go to the device in one copy and nothing is asked of the device, so that the host runs ahead of it.
float32, under autocast too; no gradient.
"""

from __future__ import annotations

import numpy as np
import torch

from transforms.drawing import Drawn, centred_affines, coarse_sides, cutout_bounds
from transforms.sharpness import sharpened, softened

GRID, MOVED, CONTRAST, NOISE, HOLE = slice(0, 6), 6, 7, 8, slice(9, 13)
SIDES, BLUR, SOFTENED, SHARPEN, GAMMA, BLACK, RANGE = slice(13, 15), 15, 16, 17, 18, 19, 20
"""Columns of the parameters on the device."""
PARAMETERS = 21


def augment_batch(images: torch.Tensor, drawn: Drawn, *, noise_seed: int) -> torch.Tensor:
    """Each image by its own row of `drawn`: a new float32 tensor of the same shape.

    `noise_seed` seeds a generator on the images' device: a batch of the same shape gets the same noise from the same seed on the same
    kind of device. ValueError for another number of axes or images, or for integers (levels, which are not in 0-1).
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"expected (n, channels, rows, columns) in 0-1, found {images.dtype} of shape {tuple(images.shape)}"
        )
    if len(drawn) != len(images):
        raise ValueError(f"expected the parameters of {len(images)} images, found those of {len(drawn)}")
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        parameters = device_parameters(drawn, (images.shape[2], images.shape[3]), images.device)
        moved = _moved(images.float(), drawn, parameters) if drawn.moved.any() else images.to(torch.float32, copy=True)
        return adjust_(moved, drawn, parameters, noise_seed)


def device_parameters(drawn: Drawn, shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    """(n, PARAMETERS) float32 on the device, for images of `shape` (rows, columns)."""
    table = np.empty((len(drawn), PARAMETERS), dtype=np.float32)
    rows, columns = shape
    # grid_sample wants the column before the row, and the distance from the image's centre in units of half a side.
    to_grid = np.array([2.0 / columns, 2.0 / rows])[:, None]
    table[:, GRID] = (centred_affines(drawn, shape)[:, [1, 0], :] * to_grid).reshape(-1, 6)
    table[:, MOVED] = drawn.moved
    table[:, CONTRAST] = drawn.contrast
    table[:, NOISE] = drawn.noise
    table[:, HOLE] = cutout_bounds(drawn, shape)
    table[:, SIDES] = coarse_sides(drawn, shape)
    table[:, BLUR] = drawn.blur
    table[:, SOFTENED] = (drawn.blur > 0) | (drawn.coarse != 1)
    table[:, SHARPEN] = drawn.sharpen
    table[:, GAMMA] = drawn.gamma
    table[:, BLACK] = drawn.window[:, 0]
    table[:, RANGE] = 1.0 + drawn.window[:, 1] - drawn.window[:, 0]
    host = torch.from_numpy(table)
    # From ordinary memory the copy would wait for all that the device still has to do.
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def _moved(images: torch.Tensor, drawn: Drawn, parameters: torch.Tensor) -> torch.Tensor:
    """A new tensor; what does not move is not resampled, which would change it in the sixth digit."""
    sampled = _resampled(images, parameters[:, GRID])
    return sampled if drawn.moved.all() else torch.where(_by_image(parameters, MOVED) > 0, sampled, images)


def _resampled(images: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Bilinear samples. Images (n, c, rows, columns); coefficients (n, 6) of the grid by row, column and 1.

    Outside is the nearest pixel of the edge: a black rim would tell varied images from those to predict.

    The grid is a sum of what the row gives and what the column gives, component by component: 1.0 ms for 64 images of 224² where
    `affine_grid` takes 10, and with places measured from the centre nothing is lost in float32 to a far origin.
    """
    n, _, rows, columns = images.shape
    by_row, by_column, constant = coefficients.view(n, 2, 3, 1).unbind(dim=2)  # each (n, 2, 1)
    from_rows = by_row * _from_center(rows, images.device) + constant  # (n, 2, rows)
    from_columns = by_column * _from_center(columns, images.device)
    grid = (from_rows[:, :, :, None] + from_columns[:, :, None, :]).permute(0, 2, 3, 1)
    return torch.nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _from_center(side: int, device: torch.device) -> torch.Tensor:
    return torch.arange(side, dtype=torch.float32, device=device) - (side - 1) / 2.0


def adjust_(images: torch.Tensor, drawn: Drawn, parameters: torch.Tensor, noise_seed: int) -> torch.Tensor:
    """All that changes values, cut to 0-1; in place where it can be: on the CPU new memory costs more than the arithmetic.

    `drawn`, on the host, tells which of them any image needs.
    """
    images = _other_sharpness(images, drawn, parameters)
    if (drawn.gamma != 1).any():
        power = _by_image(parameters, GAMMA)
        images = torch.where(power != 1, images.pow(power), images)
    if (drawn.window != 0).any():
        images.sub_(_by_image(parameters, BLACK)).div_(_by_image(parameters, RANGE))
    if (drawn.contrast != 1).any():
        images.lerp_(images.mean(dim=(1, 2, 3), keepdim=True), 1.0 - _by_image(parameters, CONTRAST))
    if (drawn.noise > 0).any():
        generator = torch.Generator(images.device).manual_seed(noise_seed)
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        images.addcmul_(noise, _by_image(parameters, NOISE))
    images.clamp_(0.0, 1.0)
    return images.masked_fill_(_holes(images, parameters), 0.0) if (drawn.cutout > 0).any() else images


def _other_sharpness(images: torch.Tensor, drawn: Drawn, parameters: torch.Tensor) -> torch.Tensor:
    """Coarse, blurred, sharpened, each where any image needs it; the other images stay what they are to the last bit."""
    coarse, blurred, softer = drawn.coarse != 1, drawn.blur > 0, (drawn.coarse != 1) | (drawn.blur > 0)
    if softer.any():
        soft = softened(
            images,
            parameters[:, SIDES] if coarse.any() else None,
            parameters[:, BLUR] if blurred.any() else None,
        )
        images = soft if softer.all() else torch.where(_by_image(parameters, SOFTENED) > 0, soft, images)
    harder = drawn.sharpen > 0
    if harder.any():
        factors = _by_image(parameters, SHARPEN)
        hard = sharpened(images, factors)
        images = hard if harder.all() else torch.where(factors > 0, hard, images)
    return images


def _by_image(parameters: torch.Tensor, column: int) -> torch.Tensor:
    return parameters[:, column].view(-1, 1, 1, 1)


def _holes(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """(n, 1, rows, columns): where each image's cutout lies."""
    row, row_end, column, column_end = parameters[:, HOLE].unbind(dim=1)
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    in_rows = (rows >= row[:, None]) & (rows < row_end[:, None])
    in_columns = (columns >= column[:, None]) & (columns < column_end[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]

"""The order of colour channels: pictures are BGR, as OpenCV reads them; networks may differ."""

from torch import Tensor


def in_convention(images: Tensor, convention: str) -> Tensor:
    """BGR images (B, 3, H, W) in the order of a network's `input_convention`, such as `rgb-255`.

    What stands behind the order, such as a normalisation, is done by the network itself.
    """
    return images.flip(1) if convention.startswith("rgb") else images

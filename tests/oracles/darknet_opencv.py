"""Write tests/detector/models/darknet_opencv.npz: small Darknet networks as OpenCV 4 computes them.

OpenCV 5 has no Darknet importer any more, so this runs in an environment of its own:

    python -m venv <folder>
    <folder>/bin/pip install "opencv-python-headless<5"
    <folder>/bin/python tests/oracles/darknet_opencv.py

It shares no code with the detector: cfg and weights are written here, layer by layer. For each case
the file holds the text of the cfg, the bytes of the weights, the maps before each [yolo] layer, and
the decoded boxes of OpenCV's own [yolo] layer.
"""

import struct
import tempfile
from pathlib import Path

import cv2
import numpy as np

SIDE = 64
CLASSES = 2
TARGET = Path(__file__).parents[1] / "detector" / "models" / "darknet_opencv.npz"


class Case:
    """A network that is written as text and as random weights at the same time."""

    def __init__(self, seed: int, version: tuple[int, int, int]) -> None:
        self.rng = np.random.default_rng(seed)
        self.text = f"[net]\nwidth={SIDE}\nheight={SIDE}\nchannels=3\n"
        self.version = version
        self.channels = [3]  # of the image and of each layer
        self.numbers: list[np.ndarray] = []
        self.heads: list[str] = []  # OpenCV's names of the layers before the [yolo] ones
        self.decoders: list[str] = []

    def conv(
        self,
        filters: int,
        size: int = 3,
        stride: int = 1,
        act: str = "leaky",
        norm: bool = True,
        groups: int = 1,
        pad: bool = True,
    ) -> None:
        inputs = self.channels[-1] // groups
        self.text += "\n[convolutional]\n" + "batch_normalize=1\n" * norm
        self.text += f"filters={filters}\nsize={size}\nstride={stride}\npad={int(pad)}\n"
        self.text += f"groups={groups}\n" * (groups > 1) + f"activation={act}\n"
        shift = 0.3 * self.rng.standard_normal(filters)
        if norm:
            gamma, variance = self.rng.uniform(0.5, 1.5, (2, filters))
            mean = 0.2 * self.rng.standard_normal(filters)
            self.numbers += [shift, gamma, mean, variance]
        else:
            self.numbers.append(shift)
        kernel = self.rng.standard_normal((filters, inputs, size, size))
        self.numbers.append(kernel * (1.4 / np.sqrt(inputs * size * size)))
        self.channels.append(filters)

    def pool(self, size: int, stride: int) -> None:
        self.text += f"\n[maxpool]\nsize={size}\nstride={stride}\n"
        self.channels.append(self.channels[-1])

    def shortcut(self, source: int, act: str = "linear") -> None:
        self.text += f"\n[shortcut]\nfrom={source}\nactivation={act}\n"
        self.channels.append(self.channels[-1])

    def route(self, *sources: int, groups: int = 1, group: int = 0) -> None:
        self.text += f"\n[route]\nlayers = {', '.join(map(str, sources))}\n"
        self.text += f"groups={groups}\ngroup_id={group}\n" * (groups > 1)
        layers = len(self.channels) - 1
        places = [source if source >= 0 else layers + source for source in sources]
        self.channels.append(sum(self.channels[place + 1] // groups for place in places))

    def upsample(self) -> None:
        self.text += "\n[upsample]\nstride=2\n"
        self.channels.append(self.channels[-1])

    def yolo(self, mask: tuple[int, ...], scale: float = 1.0) -> None:
        self.conv(len(mask) * (5 + CLASSES), size=1, act="linear", norm=False)
        layer = len(self.channels) - 2
        self.heads.append(f"conv_{layer}")
        self.decoders.append(f"yolo_{layer + 1}")
        self.text += f"\n[yolo]\nmask = {','.join(map(str, mask))}\nclasses={CLASSES}\nnum=4\n"
        self.text += "anchors = 10,14,  23,27,  37,58,  81,82\n" + f"scale_x_y={scale}\n"
        self.channels.append(self.channels[-1])

    def weights(self) -> bytes:
        # float16 values: half of their bytes are zeros, so the fixture stays small
        numbers = np.concatenate([part.ravel() for part in self.numbers]).astype(np.float16)
        long = self.version >= (0, 2, 0)
        header = struct.pack("<3iq" if long else "<3ii", *self.version, 6400)
        return header + numbers.astype("<f4").tobytes()


def pooled() -> Case:
    """Like YOLOv3-tiny: pooling by 2 with stride 2 and 1, upsampling, two heads."""
    case = Case(seed=1, version=(0, 2, 5))
    case.conv(6)
    case.pool(2, 2)
    case.conv(8)
    case.pool(2, 2)
    case.conv(10)
    case.pool(2, 1)
    case.pool(3, 2)
    case.conv(12, act="relu")
    case.yolo((2, 3), scale=1.1)
    case.route(-3)
    case.conv(6, size=1)
    case.upsample()
    case.route(-1, 5)
    case.yolo((0, 1))
    return case


def residual() -> Case:
    """Like YOLOv4: mish, groups of channels, shortcuts, spatial pyramid pooling."""
    case = Case(seed=2, version=(0, 1, 0))
    case.conv(8, act="mish")
    case.conv(8, stride=2, act="mish")
    case.route(-1, groups=2, group=1)
    case.conv(4, act="mish")
    case.conv(4, act="mish")
    case.route(-1, -2)
    case.shortcut(1)
    case.conv(12, stride=2, act="mish", groups=4)
    case.conv(6, size=1, act="mish")
    case.conv(12, act="mish")
    case.shortcut(-3, act="leaky")
    case.conv(8, size=3, stride=2)
    case.pool(5, 1)
    case.route(-2)
    case.pool(9, 1)
    case.route(-4)
    case.pool(13, 1)
    case.route(-1, -3, -5, -6)
    case.conv(8, size=1)
    case.yolo((0, 1, 2))
    return case


def activated() -> Case:
    """Every activation, convolutions without batch norm, larger and even kernels."""
    case = Case(seed=3, version=(0, 2, 0))
    case.conv(6, size=5, stride=2, act="swish")
    case.conv(6, size=3, norm=False, act="relu")
    case.conv(8, size=2, stride=2, pad=False, act="logistic")
    case.conv(8, size=3, norm=False, act="linear")
    case.pool(4, 4)
    case.conv(8, size=1, act="swish", groups=2)
    case.yolo((1, 3), scale=1.2)
    return case


def main() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)  # RGB
    blob = (image.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    content: dict[str, np.ndarray] = {"image": image, "opencv": np.array(cv2.__version__)}
    for build in (pooled, residual, activated):
        case, name = build(), build.__name__
        with tempfile.TemporaryDirectory() as folder:
            cfg, weights = Path(folder) / "x.cfg", Path(folder) / "x.weights"
            cfg.write_text(case.text)
            weights.write_bytes(case.weights())
            net = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
        net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
        net.setInput(np.ascontiguousarray(blob))
        content[f"{name}/cfg"] = np.array(case.text)
        content[f"{name}/weights"] = np.frombuffer(case.weights(), dtype=np.uint8)
        for index, raw in enumerate(net.forward(case.heads)):
            content[f"{name}/raw{index}"] = raw
        for index, decoded in enumerate(net.forward(case.decoders)):
            content[f"{name}/decoded{index}"] = decoded
    np.savez_compressed(TARGET, **content)
    print(f"{TARGET}: {TARGET.stat().st_size} bytes, OpenCV {cv2.__version__}")


if __name__ == "__main__":
    main()

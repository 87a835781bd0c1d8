"""Reading and writing Darknet cfg files."""

from pathlib import Path

import pytest

from detector.errors import ConfigError
from detector.models.darknet_blocks import (
    Conv,
    MaxPool,
    Route,
    Shape,
    Shortcut,
    Upsample,
    Yolo,
    cfg_text,
    shapes_of,
)
from detector.models.darknet_cfg import parse_cfg, read_cfg
from detector.models.yolov3 import built_in

SMALL = """\
[net]
# Testing
batch=64
width = 64
height=64
channels=3
learning_rate=0.001   # Darknet's own training

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
filters=8
size=1
activation=linear

[shortcut]
from = -2
activation=linear

[upsample]
stride=2

[route]
layers = -1, 0
groups=2
group_id=1

[convolutional]
size=1
stride=1
pad=1
filters=14
activation=linear

[yolo]
mask = 1,2
anchors = 10,13,  16,30,  33,23.5
classes=2
num=3
jitter=.3
scale_x_y = 1.05
"""
PREFIX = SMALL[: SMALL.index("[yolo]")]


def test_every_section_becomes_the_block_it_describes() -> None:
    layout = parse_cfg(SMALL, "a.cfg")
    assert (layout.width, layout.height) == (64, 64)
    assert layout.blocks == (
        Conv(8, size=3, stride=2, padding=1, batch_norm=True, activation="leaky"),
        MaxPool(size=2, stride=2, padding=1),
        Conv(8, size=1, batch_norm=False, activation="linear"),
        Shortcut(source=1),
        Upsample(2),
        Route(sources=(4, 0), groups=2, group=1),
        Conv(14, size=1, batch_norm=False, activation="linear"),
        Yolo(anchors=((16, 30), (33, 23.5)), classes=2, scale_xy=1.05),
    )


def test_shapes_are_worked_out_layer_by_layer() -> None:
    shapes = shapes_of(parse_cfg(SMALL, "a.cfg"))
    # conv: (64 + 2 - 3) // 2 + 1 = 32; pool: (32 + 1 - 2) // 2 + 1 = 16; half of 8 and half of 8
    assert shapes[:2] == [Shape(8, 32, 32), Shape(8, 16, 16)]
    assert shapes[4:] == [Shape(8, 32, 32), Shape(8, 32, 32), Shape(14, 32, 32), Shape(14, 32, 32)]


def test_what_a_section_leaves_out_is_what_darknet_takes() -> None:
    text = "[net]\n[convolutional]\n[maxpool]\n" + PREFIX[PREFIX.index("[convolutional]\nsize") :]
    layout = parse_cfg(text + "[yolo]\nanchors=4,4,8,8\nclasses=2\n", "a.cfg")
    # one 1x1 filter with a bias and the logistic function; a window of one cell
    assert layout.blocks[0] == Conv(1, 1, 1, 0, batch_norm=False, activation="logistic")
    assert layout.blocks[1] == MaxPool(1, 1, 0)
    assert layout.heads == (Yolo(((4, 4), (8, 8)), 2),)  # no mask: all of them
    assert (layout.width, layout.height) == (416, 416)


@pytest.mark.parametrize("name", ["yolov3", "yolov3-spp", "yolov3-tiny"])
def test_a_written_layout_reads_back_as_itself(name: str) -> None:
    layout = built_in(name)
    assert parse_cfg(cfg_text(layout), name) == layout


def test_a_written_file_reads_back_as_itself() -> None:
    layout = parse_cfg(SMALL, "a.cfg")
    assert parse_cfg(cfg_text(layout), "a.cfg") == layout


def test_other_classes_change_the_heads_and_the_filters_before_them() -> None:
    layout = parse_cfg(SMALL, "a.cfg").with_classes(7)
    assert layout.heads[0].classes == 7
    assert layout.blocks[6] == Conv(24, 1, batch_norm=False, activation="linear")  # 2 * (5 + 7)
    assert shapes_of(layout)[-1] == Shape(24, 32, 32)


def test_a_key_of_darknets_training_may_stand_there_twice() -> None:
    # published files have the values for testing and for training one after the other
    text = SMALL.replace("batch=64", "batch=1\nbatch=64\nchannels=3")
    assert parse_cfg(text, "a.cfg") == parse_cfg(SMALL, "a.cfg")


def test_references_count_from_the_first_layer_or_back_from_here() -> None:
    same = SMALL.replace("from = -2", "from = 1").replace("layers = -1, 0", "layers = 4, -5")
    assert parse_cfg(same, "a.cfg") == parse_cfg(SMALL, "a.cfg")


def test_the_layers_of_yolov3_stand_where_the_published_file_has_them() -> None:
    blocks = built_in("yolov3").blocks
    assert len(blocks) == 107
    kinds = [index for index, block in enumerate(blocks) if isinstance(block, Yolo)]
    assert kinds == [82, 94, 106]
    routes = [block.sources for block in blocks if isinstance(block, Route)]
    assert routes == [(79,), (85, 61), (91,), (97, 36)]
    assert blocks[74] == Shortcut(71)
    spp = built_in("yolov3-spp").blocks
    assert len(spp) == 114
    assert spp[83] == Route((82, 80, 78, 77))  # 13, 9 and 5 cells, and the layer itself
    tiny = built_in("yolov3-tiny").blocks
    assert len(tiny) == 24
    assert [block.sources for block in tiny if isinstance(block, Route)] == [(13,), (19, 8)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[maxpool]", "[avgpoool]", "a.cfg:17: [avgpoool] is not a known section"),
        ("[upsample]", "[reorg]", "a.cfg:30: [reorg] is not a known section"),
        ("activation=leaky", "activation=leaki", "a.cfg:15: activation=leaki is not a known"),
        ("activation=leaky", "activation=leaki", "did you mean leaky?"),
        ("filters=8\nsize=3", "filters=8\nsise=3", "a.cfg:12: sise is not a known key"),
        ("filters=8\nsize=3", "filters=8\nsise=3", "did you mean size?"),
        ("size=3", "size=three", "a.cfg:12: size=three is not a number"),
        ("size=3", "size=2.5", "a.cfg:12: size=2.5 must be a whole number"),
        ("stride=2\npad", "stride=0\npad", "a.cfg:13: stride=0 must be one whole number, 1 or"),
        ("pad=1\nactivation=leaky", "dilation=2\nactivation=leaky", "dilation=2 is not supported"),
        ("filters=14", "filters=15", "a.cfg:38: filters=15 before [yolo] must be 14: 2 anchors"),
        ("from = -2", "from = -9", "a.cfg:26: layer 3 refers to layer -6: allowed are 0 to 2"),
        ("from = -2", "from = 3", "a.cfg:26: layer 3 refers to layer 3: allowed are 0 to 2"),
        ("from = -2", "from = 0", "a.cfg:26: layer 0 (8, 32, 32) cannot be added to layer 2"),
        ("from = -2", "from = -2\nweights_type=per_feature", "weights_type=per_feature is not"),
        ("layers = -1, 0", "layers = -1, 1", "a.cfg:33: layers (4, 1) differ in size"),
        ("group_id=1", "group_id=2", "a.cfg:36: group_id=2 must be below groups=2"),
        ("groups=2", "groups=3", "a.cfg:33: groups=3 must divide [8, 8]"),
        ("mask = 1,2", "mask = 1,3", "a.cfg:46: mask=3 must be 0 to 2"),
        ("33,23.5", "33", "a.cfg:47: anchors must be pairs"),
        ("33,23.5", "33,-1", "a.cfg:47: anchors must be pairs"),
        ("jitter=.3", "jittter=.3", "a.cfg:50: jittter is not a known key of [yolo]"),
        ("jitter=.3", "new_coords=1", "a.cfg:50: new_coords=1 is not supported, only 0"),
        ("channels=3", "channels=1", "a.cfg:6: channels=1: images have 3"),
        ("width = 64", "width 64", "a.cfg:4: 'width 64' is not `key=value`"),
        ("height=64", "width=32", "a.cfg:5: width is given twice (line 4)"),
        ("[net]", "[network1]", "does not begin with a [net] section"),
        ("size=1\nactivation=linear", "size=99\nactivation=linear", "has nothing left of the"),
        ("filters=14\nactivation=linear", "filters=14\nactivation=leaky", "must be a [convol"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_with_file_and_line(old: str, new: str, message: str) -> None:
    assert old in SMALL
    with pytest.raises(ConfigError) as caught:
        parse_cfg(SMALL.replace(old, new), "a.cfg")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not begin with a [net] section"),
        ("width=4\n", "a.cfg:1: 'width=4' is not `key=value`"),
        ("[net]\n", "there is no [yolo] section"),
        ("[net]\n[yolo]\nanchors=1,1\n", "a.cfg:2: the layer before [yolo] must be"),
        ("[net]\n[route]\nlayers=-1\n", "a.cfg:2: [route] cannot be the first layer"),
        ("[net]\n[route]\n", "a.cfg:2: layers must name at least one layer"),
        (SMALL + "[maxpool]\n", "layer 8 reads layer 7, a [yolo]"),
    ],
)
def test_a_file_that_is_no_detector_is_told_so(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_cfg(text, "a.cfg")
    assert message in str(caught.value)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.cfg: no such file"):
        read_cfg("absent.cfg")
    (tmp_path / "b.cfg").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match=r"b\.cfg: not a readable text file"):
        read_cfg(tmp_path / "b.cfg")

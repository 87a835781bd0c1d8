"""What is wrong with the images of a data set: damaged, turned, doubled, or in two splits."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from detector.data.checks import Issue, Seen
from detector.data.likeness import Look, find_alike, likeness
from detector.errors import DataError

Looks = Mapping[Path, Look | DataError]


@dataclass(frozen=True, eq=False)
class Picture:
    """An image that can be decoded: what its labels say and how it looks."""

    seen: Seen
    look: Look


def image_issues(images: Mapping[str, Iterable[Seen]], looks: Looks) -> Iterator[Issue]:
    """Yield what is wrong with the images of each split; train is compared with the others."""
    good = {}
    for split, seen in images.items():
        pictures = []
        for one in seen:
            look = looks[one.path]
            if isinstance(look, DataError):
                yield Issue("image-unreadable", split, str(look))
                continue
            yield from _file_issues(one, look, split)
            if not look.error:
                pictures.append(Picture(one, look))
        good[split] = pictures
    first: dict[str, dict[bytes, Picture]] = {}
    for split, pictures in good.items():
        first[split] = {}
        yield from _doubles(split, pictures, first[split])
    yield from _shared(first)
    yield from _alike(first)


def _file_issues(seen: Seen, look: Look, split: str) -> Iterator[Issue]:
    if look.error:
        cut = " (the file ends too early)" if look.cut_off else ""
        yield Issue("image-unreadable", split, f"{seen.path}: {look.error}{cut}")
    elif look.size != seen.size:
        (height, width), (told_height, told_width) = look.size, seen.size
        message = f"{seen.path}: decoded to {width}x{height}, its header says"
        yield Issue("image-unreadable", split, f"{message} {told_width}x{told_height}")
    elif look.cut_off:
        yield Issue("image-cut-off", split, str(seen.path))
    if look.turn != 1:
        yield Issue("image-turned", split, f"{seen.path}: orientation {look.turn}")


def _doubles(
    split: str, pictures: Iterable[Picture], first: dict[bytes, Picture]
) -> Iterator[Issue]:
    """Yield the images that are the same file as one before; fill `first` with the others."""
    for picture in pictures:
        other = first.setdefault(picture.look.digest, picture)
        if other is not picture:
            same = _box_key(picture.seen) == _box_key(other.seen)
            rule = "image-duplicate" if same else "image-duplicate-labels"
            yield Issue(rule, split, f"{picture.seen.path}: the same as {other.seen.path}")


def _box_key(seen: Seen) -> list[tuple[float, ...]]:
    """Return the boxes, to half a pixel, so that equal ones compare equal in any order."""
    return sorted((box.label, *(round(2 * edge) for edge in box.xyxy)) for box in seen.boxes)


def _shared(first: Mapping[str, Mapping[bytes, Picture]]) -> Iterator[Issue]:
    """Yield the images that stand in two splits."""
    for rule, split, earlier in (
        ("image-leak", "val", "train"),
        ("image-leak", "test", "train"),
        ("image-shared", "test", "val"),
    ):
        known = first.get(earlier, {})
        for digest, picture in first.get(split, {}).items():
            if digest in known:
                place = known[digest].seen.path
                same = place == picture.seen.path
                message = "the same file" if same else f"the same as {place}"
                yield Issue(rule, split, f"{picture.seen.path}: {message} in {earlier}")


def _alike(first: Mapping[str, Mapping[bytes, Picture]]) -> Iterator[Issue]:
    """Yield the images that only look like another one: of their split, or of train."""
    train = list(first.get("train", {}).values())
    for split, unique in first.items():
        own = list(unique.values())
        looks = [picture.look for picture in own]
        for index, other in find_alike(looks, looks, before=True).items():
            yield _pair("image-alike", split, own[index], own[other])
        if split != "train":
            fresh = [p for digest, p in unique.items() if digest not in first.get("train", {})]
            found = find_alike([p.look for p in fresh], [p.look for p in train])
            for index, other in found.items():
                yield _pair("image-leak-alike", split, fresh[index], train[other])


def _pair(rule: str, split: str, one: Picture, other: Picture) -> Issue:
    score = likeness(one.look, other.look)
    return Issue(rule, split, f"{one.seen.path}: like {other.seen.path} ({score:.3f})")

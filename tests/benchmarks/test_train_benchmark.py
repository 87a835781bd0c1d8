import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import train as benchmark
from benchmarks import train_loop
from benchmarks.alternate import Side, alternate, read_column, together
from detector.config import resolve
from detector.data.description import load_data, read_split

WRITER = """
import sys, time
print("loss,mAP", file=open("table.csv", "w"), flush=True)
for value in sys.argv[1:]:
    time.sleep(0.1)
    print(f"1.0,{value}", file=open("table.csv", "a"), flush=True)
    if value == "boom":
        sys.exit(3)
"""


def writer(name: str, folder: Path, *values: str) -> Side:
    command = [sys.executable, "-c", WRITER, *values]
    place = folder / name
    return Side(name, command, place, place / "table.csv", "mAP", 0.5, dict(os.environ))


def test_a_side_ends_when_it_reaches_the_target_or_its_last_epoch(tmp_path: Path) -> None:
    quick = writer("quick", tmp_path, "0.1", "0.6", "0.7", *["0.8"] * 600)
    slow = writer("slow", tmp_path, "0.1", "0.2", "0.3", "0.4")
    began = time.monotonic()
    alternate([quick, slow], stretch=0.1)
    elapsed = time.monotonic() - began
    assert (quick.ended, slow.ended) == ("reached", "finished")
    assert quick.reached is not None and quick.reached <= quick.seconds
    assert slow.reached is None
    assert [metric for _, metric in slow.rows] == [0.1, 0.2, 0.3, 0.4]
    assert quick.seconds + slow.seconds <= elapsed  # a clock stands still while the other runs
    assert all(side.process and side.process.poll() is not None for side in (quick, slow))


def test_a_side_is_ended_when_it_is_slow_enough(tmp_path: Path) -> None:
    quick = writer("quick", tmp_path, "0.6")
    slow = writer("slow", tmp_path, *["0.1"] * 6000)
    alternate([quick, slow], stretch=0.1, enough=0.5)
    assert slow.ended == "long enough"
    assert quick.reached is not None and quick.reached < 0.5 * slow.seconds
    assert slow.process is not None and slow.process.poll() is not None


def test_sleep_costs_no_processor_time(tmp_path: Path) -> None:
    sleepy = writer("sleepy", tmp_path, *["0.1"] * 20)  # sleeps for 2 s
    busy = writer("busy", tmp_path)
    loop = "import time\nwhile time.process_time() < 0.5: pass\n"
    busy.command = [sys.executable, "-c", loop + "print('mAP\\n0.9', file=open('table.csv', 'w'))"]
    began = time.monotonic()
    together([busy, sleepy])
    assert (busy.ended, sleepy.ended) == ("reached", "finished")
    assert busy.reached is not None and busy.reached >= 0.4  # counted in hundredths of a second
    assert sleepy.seconds < time.monotonic() - began - 1  # half of its sleep, to be safe
    assert len(sleepy.rows) == 20


def test_a_side_that_fails_ends_the_other_and_names_its_log(tmp_path: Path) -> None:
    good = writer("good", tmp_path, *["0.1"] * 600)
    bad = writer("bad", tmp_path)
    bad.command = [sys.executable, "-c", "raise SystemExit('no data')"]
    with pytest.raises(RuntimeError, match=r"bad failed: see .*log\.txt"):
        alternate([good, bad], stretch=0.1)
    assert "no data" in (tmp_path / "bad" / "log.txt").read_text()
    assert good.process is not None and good.process.poll() is not None


def test_half_a_line_of_a_table_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    assert read_column(path, "mAP") == []
    path.write_text("epoch,   mAP\n1,  0.25\n2,\n3,  0.3")
    assert read_column(path, "mAP") == [0.25, 0.0]  # row 2: an epoch without an evaluation


def test_the_peer_gets_the_same_boxes(tiny_set: Path, tmp_path: Path) -> None:
    data = load_data(tiny_set)
    copy = load_data(benchmark.write_yolo_copy(data, tmp_path / "copy"))
    assert copy.names == data.names
    for split in ("train", "val"):
        for ours, theirs in zip(read_split(data, split), read_split(copy, split), strict=True):
            assert theirs.path.read_bytes() == ours.path.read_bytes()
            assert np.array_equal(theirs.labels, ours.labels)
            assert np.allclose(theirs.boxes, ours.boxes, atol=1e-4)


def test_each_epoch_of_the_loop_stands_beside_bare_steps(tiny_set: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    setting = train_loop.Setting(data=str(tiny_set), model="yolox-pico", imgsz=64)
    found = train_loop.measure_loop(setting, 2, threads, tmp_path / "run")
    assert [row["epoch"] for row in found["epochs"]] == [1, 2]
    for row in found["epochs"]:
        assert row["ratio"] == pytest.approx(row["train"] / row["bare"])
        assert row["with_evaluation"] < row["train"]
    ratios = [row["ratio"] for row in found["epochs"]]
    assert found["ratio"] == pytest.approx(sum(ratios) / 2)  # the median of two


def test_pauses_are_taken_off_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Bare:
        parts, count = 1, 10

        def batches(self, epoch: int) -> list[int]:
            return [2] * 5

        def seconds(self, batches: list[int]) -> float:
            clock[0] += 3.0 * len(batches)
            return 3.0 * len(batches)

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    both = train_loop.Interleaved(Bare(), steps=2)  # type: ignore[arg-type]
    for step in range(1, 6):
        clock[0] += 4.0
        both.on_step(step, {})
    # Training: 5 steps of 4 s; pauses after steps 2 and 4, of 2 x 3 s each: 20 + 12 s.
    assert clock[0] == 32.0
    both.on_epoch(1, {"images_per_second": 10 / 32, "seconds": 37.0})
    # Bare: 5 batches of 3 s, the last one in on_epoch. 10 / 20 against 10 / 15 images/s.
    expected = {"epoch": 1, "train": 0.5, "bare": 10 / 15, "ratio": 0.75, "with_evaluation": 0.4}
    assert both.rows == [pytest.approx(expected)]


def test_the_bare_step_sees_the_batches_of_the_training(tiny_set: Path) -> None:
    setting = {"data": str(tiny_set), "model": "yolox-pico", "imgsz": 64, "nbs": 3, "batch": 2}
    config, hyp = resolve(setting)
    bare = train_loop.BareStep(config, hyp)
    sizes = [len(batch.images) for batch in bare.batches(1)]
    assert sizes == [2, 1, 2, 1, 2]  # 8 images in steps of 3, 3 and 2, in parts of at most 2
    again = train_loop.BareStep(config, hyp).batches(1)
    assert all(
        torch.equal(one.images, two.images) for one, two in zip(bare.batches(1), again, strict=True)
    )


def test_an_unknown_part_and_a_missing_peer_are_refused(capsys: pytest.CaptureFixture) -> None:
    assert benchmark.main(["--parts", "lop"]) == 2
    assert "--parts lop: allowed are loop, target" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="make it with --setup"):
        benchmark.main(["--parts", "target", "--peer", "nowhere"])

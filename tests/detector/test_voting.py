"""Box voting: hand-worked numbers, a brute force, and what it leaves alone."""

import pytest
import torch

from detector.boxes import elementwise_iou
from detector.voting import IOU_POWER, RADIUS, vote


def test_the_mean_is_the_hand_worked_one() -> None:
    # Two cells side by side with boxes 10 wide, one moved by 2: they share 8 x 10 of 12 x 10, so
    # IoU = 2/3. With scores 1/2 and 1/4 the weights at the first cell are 1/2 for its own box and
    # 1/4 (2/3)^6 = 16/729 for the other.
    boxes = torch.tensor([[[0.0, 0, 10, 10], [2, 0, 12, 10]]])
    found = vote(boxes, torch.tensor([[0.5, 0.25]]), [(1, 2)])
    share = (16 / 729) / (1 / 2 + 16 / 729)
    assert found[0, 0].tolist() == pytest.approx([2 * share, 0, 10 + 2 * share, 10], rel=1e-5)
    # the other way round: own weight 1/4, the neighbour's 1/2 (2/3)^6 = 32/729
    share = (32 / 729) / (1 / 4 + 32 / 729)
    assert found[0, 1].tolist() == pytest.approx([2 - 2 * share, 0, 12 - 2 * share, 10], rel=1e-5)


def test_it_is_the_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(6, 7), (3, 4)]
    places = [(m, y, x) for m, (h, w) in enumerate(sizes) for y in range(h) for x in range(w)]
    low = 20 * torch.rand(2, len(places), 2, generator=generator)
    boxes = torch.cat((low, low + 15 + 10 * torch.rand(low.shape, generator=generator)), dim=-1)
    scores = torch.rand(2, len(places), generator=generator)
    found = vote(boxes, scores, sizes)
    for image in range(2):
        for row, (own_map, y, x) in enumerate(places):
            total, mean = torch.tensor(0.0), torch.zeros(4)
            for other, (other_map, v, u) in enumerate(places):
                if other_map == own_map and max(abs(v - y), abs(u - x)) <= RADIUS:
                    iou = elementwise_iou(boxes[image, row], boxes[image, other])
                    weight = scores[image, other] * iou**IOU_POWER
                    total, mean = total + weight, mean + weight * boxes[image, other]
            torch.testing.assert_close(found[image, row], mean / total)


def test_another_object_beside_it_has_no_say() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [10, 0, 20, 10]]])
    assert torch.equal(vote(boxes, torch.tensor([[0.1, 0.9]]), [(1, 2)]), boxes)


def test_neighbours_of_one_mind_change_nothing() -> None:
    boxes = torch.tensor([3.0, 4, 9, 14]).expand(2, 20, 4)
    torch.testing.assert_close(vote(boxes, torch.rand(2, 20) + 0.1, [(4, 4), (2, 2)]), boxes)


def test_a_box_without_area_or_score_stays_as_it_is() -> None:
    boxes = torch.tensor([[[5.0, 5, 5, 5], [0, 0, 10, 10]]])
    torch.testing.assert_close(vote(boxes, torch.tensor([[0.5, 0.0]]), [(1, 2)]), boxes)


def test_tiny_scores_count_alike() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [2, 0, 12, 10]]])
    found = [vote(boxes, torch.tensor([pair]), [(1, 2)]) for pair in ((1e-9, 1e-5), (1e-6, 1e-7))]
    assert torch.equal(*found)

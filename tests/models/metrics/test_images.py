import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planner.models.metrics.images import as_images, compare, flicker, frechet, side_by_side
from planner.models.metrics.scorer import Scorer, retrieval
from planner.plan.quality import Quality, psnr, ssim


def test_psnr_is_that_of_the_error():
    black = torch.zeros(2, 3, 8, 8)
    assert psnr(black, black + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)).tolist() == pytest.approx([20, 40], abs=1e-3)
    assert psnr(black, black).tolist() == [100, 100]


def test_clips_are_judged_as_wholes():
    a, b = torch.rand(2, 3, 4, 32, 32), torch.rand(2, 3, 4, 32, 32)
    frames = torch.stack([ssim(a[:, :, t], b[:, :, t]) for t in range(4)]).mean(0)
    torch.testing.assert_close(ssim(a, b), frames)
    assert Quality(ssim=0.9).of(a, a) == pytest.approx([1, 1], abs=1e-5)
    assert Quality(psnr=30).of(a, b) == pytest.approx((-10 * (a - b).square().flatten(1).mean(1).log10()).tolist())


def test_ssim_of_equal_and_of_unlike_images():
    a, b = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    assert ssim(a, a).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert ssim(a, b).max() < 0.3


def test_frechet_distance_of_gaussians():
    torch.manual_seed(0)
    a = torch.randn(2000, 3)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a, a + torch.tensor([3.0, 4.0, 0.0])) == pytest.approx(25, rel=1e-5)
    assert frechet(a, a * 2 - a.mean(0)) == pytest.approx(float(torch.cov(a.T).trace()), rel=1e-4)


def test_flicker_is_the_mean_change():
    ramp = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 3, 4, 2, 2)
    assert flicker(ramp) == 1


def test_frames_are_compared_with_their_own():
    clips = torch.rand(2, 3, 4, 8, 8)
    assert torch.equal(as_images(clips)[5], clips[1, :, 1])
    images = torch.rand(2, 3, 8, 8)
    assert as_images(images) is images


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 4, 32, 32)])
def test_a_sample_compared_with_itself(shape):
    samples = torch.rand(4, *shape)
    real, prompts = torch.rand(8, 3, 32, 32), torch.randn(4, 384)
    with torch.no_grad():
        found = compare(samples, samples.clone(), real, prompts, Scorer())
    assert found.psnr == 100
    assert found.ssim == pytest.approx(1, abs=1e-5)
    assert (found.distance, found.flicker) == (0, 1)
    assert (found.match, found.frechet) == (found.dense_match, found.dense_frechet)
    assert found.frechet > 0


@given(st.floats(0.01, 0.2))
def test_distance_grows_with_noise(amount):
    torch.manual_seed(0)
    scorer, image, noise = Scorer(), torch.rand(1, 3, 32, 32) * 0.5, torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        near, far = (float(scorer.distance(image, image + noise * a)) for a in (amount, amount * 2))
    assert 0 < near < far


def test_side_by_side_shows_both_and_white_where_they_agree():
    dense, planned = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    planned[..., 0, 0] = 0.125
    shown = side_by_side(dense, planned)
    assert shown.shape == (1, 3, 2, 6)
    assert shown[0, 0].tolist() == [[0, 0, 0.125, 0, 0.5, 1], [0, 0, 0, 0, 1, 1]]


def test_retrieval_counts_right_names():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.2, 0.3, 0.1]])
    assert retrieval(scores, ["a", "b", "c"], 1) == pytest.approx(1 / 3)
    assert retrieval(scores, ["a", "b", "c"], 2) == pytest.approx(1 / 3)
    assert retrieval(scores, ["a", "b", "b"], 2) == pytest.approx(1)

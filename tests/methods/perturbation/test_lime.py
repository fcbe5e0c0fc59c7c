"""LIME: closed forms, standard errors, the stopping rule, what can go wrong."""

from __future__ import annotations

from itertools import combinations, islice, product

import numpy as np
import pytest
from scipy.stats import spearmanr

import pellucid
from pellucid.errors import MethodError, PellucidError, UnsupportedError
from pellucid.methods.perturbation.kriging import Kriging, projected
from pellucid.methods.perturbation.regression import ridge
from pellucid.methods.perturbation.sampling import Locality, Stream, balanced_pairs, pairs_of
from pellucid.methods.perturbation.selection import selection, sparse_ridge
from tests.methods.perturbation.scenes import SEGMENTS, image, network

COEFFICIENTS = np.array([3.0, -2, 0, 0, 1, 1, 0.5, 0, -0.25, 0, 0, 0.1])
OPTIONS = {"segments": SEGMENTS, "replacement": 0.0}


def linear(z):
    return 0.5 + z @ COEFFICIENTS


def crossed(z):
    """Interactions of two and three superpixels, and a saturation."""
    return np.tanh(z @ COEFFICIENTS) + z[:, 0] * z[:, 1] - 2 * z[:, 2] * z[:, 4] * z[:, 5]


def every_mask(count):
    return np.array(list(product([False, True], repeat=count)))


@pytest.mark.parametrize("options", [{}, {"num_samples": 100}, {"surrogate": False}])
def test_a_linear_model_gives_its_coefficients(options):
    found = pellucid.explain(network(linear), image(), "lime", **OPTIONS, **options)
    np.testing.assert_allclose(found.weights, COEFFICIENTS, atol=1e-6)
    assert found.intercept == pytest.approx(0.5, abs=1e-6)
    assert found.r2 == pytest.approx(1)
    assert found.local_prediction == pytest.approx(found.score, abs=1e-5)
    assert found.standard_errors.max() < 1e-5
    if not options:
        assert found.settled
        assert found.predictions == 101  # the first look was enough


def test_the_package_s_ridge_is_the_ridge():
    found = pellucid.explain(
        network(crossed), image(), "lime", like="lime", num_samples=80, seed=5, **OPTIONS
    )
    state = np.random.RandomState(5)
    state.randint(0, high=1000)
    masks = state.randint(0, 2, 80 * 12).reshape(80, 12).astype(float)
    masks[0] = 1
    distance = 1 - np.sqrt(masks.mean(axis=1))
    roots = np.sqrt(np.sqrt(np.exp(-(distance**2) / 0.25**2)))[:, None]
    # A ridge is least squares with rows sqrt(alpha) below; the intercept's column has none.
    design = np.concatenate([roots * np.c_[np.ones(80), masks], np.eye(13)[1:]])
    target = np.concatenate([roots[:, 0] * crossed(masks).astype(np.float32), np.zeros(12)])
    expected = np.linalg.lstsq(design, target, rcond=None)[0]
    np.testing.assert_allclose(found.weights, expected[1:], atol=1e-9)
    assert found.intercept == pytest.approx(expected[0])


def test_a_choice_of_superpixels_that_are_never_hidden_is_one_of_the_others():
    masks = np.random.default_rng(0).random((60, 12)) < 0.5
    masks[:, [0, 4]] = True  # nothing is known of them
    scores, weights = linear(masks), np.ones(60)
    chosen = selection("forward_selection", 3)(masks, scores, weights)
    assert sorted(chosen) == [1, 5, 6]  # of -2, 1 and 0.5
    fit = sparse_ridge(masks, scores, weights, 0.0, chosen)
    design = np.c_[np.ones(60), masks[:, chosen]]
    expected = np.linalg.lstsq(design, scores, rcond=None)[0]
    np.testing.assert_allclose(fit.weights[chosen], expected[1:])
    assert not np.delete(fit.weights, chosen).any()
    assert not np.delete(fit.standard_errors, chosen).any()


def test_pairs_weighted_stand_for_the_locality_distribution():
    locality = Locality(6, 0.25)
    masks = every_mask(6)
    exact = locality.weights(masks) / locality.weights(masks).sum()
    # Of many designs the third block: each of its masks is by chance, whatever came before.
    streams = [balanced_pairs(locality.sizes, np.random.default_rng(seed)) for seed in range(120)]
    drawn = np.concatenate([next(islice(blocks, 2, None)) for blocks in streams])
    assert (drawn[0::2] == ~drawn[1::2]).all()
    index = drawn @ (1 << np.arange(6)[::-1])
    share = np.bincount(index, locality.pair_weights(drawn), minlength=64) / len(drawn)
    np.testing.assert_allclose(share, exact, atol=5 * np.sqrt(exact.max() / len(drawn)))
    p, both = locality.moments
    assert p == pytest.approx(exact @ masks[:, 2])
    assert both == pytest.approx(exact @ (masks[:, 2] & masks[:, 4]))


@pytest.mark.parametrize("count", [12, 34])
def test_balanced_masks_tell_superpixels_apart_at_no_price(count):
    rng = np.random.default_rng(0)
    blocks = balanced_pairs(Locality(count).sizes, rng)
    masks = np.concatenate([next(blocks) for _ in range(6)])
    x = np.where(masks, 1.0, -1.0)
    # Variance of a weight in units of the noise's over n: 1 at best, n / (n - K) by chance.
    price = len(x) * np.trace(np.linalg.inv(x.T @ x)) / count
    assert 1 - 1e-9 < price < 1.02
    by_chance = np.where(rng.permuted(masks[::2], axis=1), 1.0, -1.0)  # of the same sizes
    assert len(by_chance) * np.trace(np.linalg.inv(by_chance.T @ by_chance)) / count > 1.05


def test_a_longer_stream_begins_with_a_shorter_one():
    short, long = (
        Stream(balanced_pairs(Locality(9).sizes, np.random.default_rng(3))) for _ in range(2)
    )
    parts = [short.part(start, start + 30) for start in range(0, 120, 30)]
    np.testing.assert_array_equal(np.concatenate(parts), long.part(0, 120))


def test_kept_masks_are_those_of_the_seed_whatever_a_caller_does_to_them():
    sizes = Locality(9).sizes
    expected = np.concatenate(list(islice(balanced_pairs(sizes, np.random.default_rng(3)), 2)))
    first = pairs_of(sizes, 3).part(0, 100)
    np.testing.assert_array_equal(first, expected)
    first[:] = True
    np.testing.assert_array_equal(pairs_of(sizes, 3).part(0, 100), expected)
    assert (pairs_of(sizes, 4).part(0, 100) != expected).any()
    assert (pairs_of(Locality(9, 0.1).sizes, 3).part(0, 100) != expected).any()


def test_the_projection_of_the_process_is_exact():
    locality, rng = Locality(8, 0.25), np.random.default_rng(1)
    masks = next(balanced_pairs(locality.sizes, rng))
    scores = crossed(np.pad(masks, ((0, 0), (0, 4))).astype(float))
    kriging = Kriging(rng.uniform(0.001, 0.8, 8), 1.7, 0.05)
    found = projected(kriging, masks, scores, locality, locality.pair_weights(masks))
    signs, everything = np.where(masks, 1.0, -1.0), every_mask(8)

    def kernel(a, b):
        return 1.7 * np.exp(((a[:, None] * b - 1) * kriging.relevance).sum(-1))

    inverse = np.linalg.inv(kernel(signs, signs) + 0.05 * np.eye(50))
    guess = kernel(np.where(everything, 1.0, -1.0), signs) @ inverse
    mean = scores.mean()

    def by_hand(y):
        return ridge(everything, mean + guess @ (y - mean), locality.weights(everything))

    expected = by_hand(scores)
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-9)
    assert found.intercept == pytest.approx(expected.intercept)
    # The jackknife: a pair left out is a pair whose scores the others foretell.
    changes = []
    for pair in range(25):
        rows = np.delete(np.arange(50), [2 * pair, 2 * pair + 1])
        alone = np.linalg.solve(
            kernel(signs[rows], signs[rows]) + 0.05 * np.eye(48), scores[rows] - mean
        )
        all_scores = mean + kernel(np.where(everything, 1.0, -1.0), signs[rows]) @ alone
        left = ridge(everything, all_scores, locality.weights(everything))
        changes.append(expected.weights - left.weights)
    changes = np.array(changes)
    np.testing.assert_allclose(found.deviations, changes - changes.mean(axis=0), atol=1e-9)


@pytest.mark.parametrize("surrogate", [False, True])
def test_the_estimate_is_right_on_average_and_its_standard_error_is_true(surrogate):
    locality = Locality(12, 0.25)
    everything = every_mask(12)
    target = ridge(everything, crossed(everything.astype(float)), locality.weights(everything))
    found = [
        pellucid.explain(
            network(crossed), image(), "lime", num_samples=120, surrogate=surrogate, seed=seed,
            **OPTIONS,
        )
        for seed in range(40)
    ]  # fmt: skip
    weights = np.array([one.weights for one in found])
    spread = np.sqrt(weights.var(axis=0, ddof=1).mean())
    told = np.sqrt(np.mean([one.standard_errors**2 for one in found]))
    # The jackknife of the process errs on the safe side (Efron and Stein, 1981): without a pair
    # the masks are not balanced any more, which the process, nearly exact here, notices most.
    assert 0.8 < told / spread < (2.5 if surrogate else 1.3)
    error = weights.mean(axis=0) - target.weights
    assert np.sqrt((error**2).mean()) < 0.45 * spread  # the mean of forty


def test_it_is_steadier_than_the_package_with_fewer_predictions():
    ours, theirs = (
        np.array([
            pellucid.explain(
                network(crossed), image(), "lime", seed=seed, **OPTIONS, **options
            ).weights
            for seed in range(12)
        ]).std(axis=0, ddof=1).mean()
        for options in (
            {"num_samples": 150, "surrogate": True},
            {"num_samples": 450, "like": "lime"},
        )
    )  # fmt: skip
    assert ours < theirs


def test_sampling_ends_when_the_top_is_settled_or_the_budget_is_spent():
    easy = pellucid.explain(network(crossed), image(), "lime", top_segments=1, **OPTIONS)
    assert easy.settled
    assert easy.certainty > 0.95
    assert easy.predictions < 300
    tied = pellucid.explain(
        network(lambda z: np.prod(2 * z[:, :9] - 1, axis=1)), image(), "lime", budget=160, **OPTIONS
    )  # no linear part at all: every ranking is noise
    assert tied.settled is False
    assert tied.predictions == 161
    assert tied.certainty < 0.95
    assert any("budget=" in note for note in tied.notes)


def test_sampling_goes_on_until_the_whole_ranking_is_steady():
    options = {"top_segments": 1, **OPTIONS}
    quick, steady = (
        pellucid.explain(network(crossed), image(), "lime", rank_stability=wanted, **options)
        for wanted in (0.0, 0.95)
    )
    assert quick.settled
    assert steady.settled
    assert quick.rank_stability < 0.95 <= steady.rank_stability
    assert quick.predictions < steady.predictions < 1001
    never = pellucid.explain(
        network(crossed), image(), "lime", rank_stability=0.95, budget=100, **options
    )
    assert never.settled is False
    assert never.certainty > 0.95  # the top one is known, the ranking is not


def test_weights_known_to_be_alike_have_no_ranking_to_wait_for():
    alike = pellucid.explain(network(lambda z: z[:, 0] + 0 * z[:, 1]), image(), "lime", **OPTIONS)
    assert alike.settled
    assert alike.predictions == 101


@pytest.mark.parametrize("surrogate", [False, True])
def test_rank_stability_is_the_correlation_of_two_seeds(surrogate):
    curved = np.random.default_rng(0).normal(0, 0.3, (12, 12))

    def faint(z):
        x = 2 * z - 1
        return 3 * z[:, 0] + z @ np.linspace(-0.3, 0.3, 12) + ((x @ curved) * x).sum(1) * x[:, 3]

    found = [
        pellucid.explain(
            network(faint), image(), "lime", num_samples=150, surrogate=surrogate, seed=seed,
            **OPTIONS,
        )
        for seed in range(12)
    ]  # fmt: skip
    true = np.mean([spearmanr(a.weights, b.weights)[0] for a, b in combinations(found, 2)])
    assert np.mean([one.rank_stability for one in found]) == pytest.approx(true, abs=0.12)
    assert 0.6 < true < 0.9


def test_dummy_and_symmetric_superpixels():
    found = pellucid.explain(
        network(lambda z: z[:, 0] * z[:, 1] + z[:, 2] ** 2), image(), "lime", num_samples=400,
        **OPTIONS,
    )  # fmt: skip
    np.testing.assert_allclose(found.weights[3:], 0, atol=0.06)
    assert found.weights[0] == pytest.approx(found.weights[1], abs=0.06)


def test_other_classes_reuse_the_predictions():
    calls = []

    def predict(batch):
        calls.append(len(batch))
        shown = batch[:, ::4, ::4, 0].reshape(len(batch), 12)
        return np.stack([shown @ COEFFICIENTS, -shown[:, 0]], axis=1)

    first = pellucid.explain(predict, image(), "lime", target=0, num_samples=60, **OPTIONS)
    asked = sum(calls)
    other = first.of(1)
    assert sum(calls) == asked + 1  # the image itself, to see that the function still says the same
    np.testing.assert_allclose(other.weights, [-1] + [0] * 11, atol=1e-6)
    again = pellucid.explain(predict, image(), "lime", target=0, num_samples=60, **OPTIONS)
    assert sum(calls) == asked + 2
    np.testing.assert_array_equal(again.weights, first.weights)
    with pytest.raises(MethodError, match="read from a file"):
        type(first).of(
            type(first)(
                attribution=first.attribution, heatmap=first.heatmap, method="lime", score=0
            ),
            1,
        )


def test_a_changed_function_is_asked_anew():
    factor = [1.0]
    predict = network(lambda z: factor[0] * linear(z))
    first = pellucid.explain(predict, image(), "lime", num_samples=60, **OPTIONS)
    factor[0] = 2.0
    second = pellucid.explain(predict, image(), "lime", num_samples=60, **OPTIONS)
    np.testing.assert_allclose(second.weights, 2 * first.weights, atol=1e-5)


def test_any_numbering_of_superpixels_gives_the_same():
    one, other = (
        pellucid.explain(
            network(linear), image(), "lime", segments=labels, replacement=0.0, num_samples=60
        )
        for labels in (SEGMENTS, 7 * SEGMENTS + 1)
    )
    np.testing.assert_array_equal(one.weights, other.weights)


# ---- what can go wrong -----------------------------------------------------------------------


def test_one_superpixel_is_refused():
    with pytest.raises(MethodError, match="single superpixel"):
        pellucid.explain(network(linear), image(), "lime", segments=np.zeros((12, 16), int))


def test_nan_predictions_are_refused():
    with pytest.raises(MethodError, match=r"NaN or infinity for .* perturbed"):
        pellucid.explain(
            network(lambda z: np.where(z.all(axis=1), 1, np.nan)), image(), "lime", **OPTIONS
        )
    with pytest.raises(MethodError, match="score of the image itself is nan"):
        pellucid.explain(network(lambda z: z[:, 0] * np.nan), image(), "lime", **OPTIONS)


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda batch: np.zeros((len(batch) + 1, 2)), r"returned shape \(2, 2\) for 1 images"),
        (lambda batch: 3.0, r"returned shape \(\)"),
        (lambda batch: "cat", "not an array of scores"),
    ],
)
def test_predictions_of_the_wrong_shape_are_refused(predict, message):
    with pytest.raises(PellucidError, match=message):
        pellucid.explain(predict, image(), "lime", **OPTIONS)


def test_a_function_that_raises_halfway_goes_on_where_it_failed():
    asked = []

    def predict(batch):
        asked.append(len(batch))
        if len(asked) == 3:
            raise RuntimeError("out of memory")
        return linear(batch[:, ::4, ::4, 0].reshape(len(batch), 12))

    with pytest.raises(PellucidError, match=r"predict raised RuntimeError .*out of memory"):
        pellucid.explain(predict, image(), "lime", num_samples=100, **OPTIONS)
    found = pellucid.explain(predict, image(), "lime", num_samples=100, **OPTIONS)
    np.testing.assert_allclose(found.weights, COEFFICIENTS, atol=1e-6)
    assert sum(asked) - asked[2] == 1 + 1 + 100  # none of the masks was asked twice


def test_an_answer_may_lie_in_an_array_that_is_used_again():
    room = np.empty((64, 1), np.float32)

    def predict(batch):
        room[: len(batch), 0] = linear(batch[:, ::4, ::4, 0].reshape(len(batch), 12))
        return room[: len(batch)]

    found = pellucid.explain(predict, image(), "lime", num_samples=200, memory=2**18, **OPTIONS)
    np.testing.assert_allclose(found.weights, COEFFICIENTS, atol=1e-5)


def test_control_c_keeps_what_is_done():
    asked = []

    def predict(batch):
        asked.append(len(batch))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return linear(batch[:, ::4, ::4, 0].reshape(len(batch), 12))

    found = pellucid.explain(predict, image(), "lime", num_samples=400, **OPTIONS)
    assert asked[:3] == [1, 64, 64]
    assert found.predictions >= 129  # a mask that came before is known without asking
    np.testing.assert_allclose(found.weights, COEFFICIENTS, atol=1e-6)
    assert any(f"Interrupted after {found.predictions} p" in note for note in found.notes)


def test_control_c_before_anything_is_known_is_control_c():
    def predict(batch):
        if len(batch) > 1:
            raise KeyboardInterrupt
        return linear(batch[:, ::4, ::4, 0].reshape(len(batch), 12))

    with pytest.raises(KeyboardInterrupt):
        pellucid.explain(predict, image(), "lime", **OPTIONS)


def test_control_c_leaves_later_images_out():
    asked = []

    def predict(batch):
        asked.append(len(batch))
        if len(asked) == 7:
            raise KeyboardInterrupt
        return linear(batch[:, ::4, ::4, 0].reshape(len(batch), 12))

    images = [image(seed=seed) for seed in range(4)]
    found = pellucid.explain(predict, images, "lime", num_samples=128, **OPTIONS)
    assert len(found) == 3
    assert [bool(one.notes) for one in found] == [False, False, True]
    assert "Interrupted after 65" in found[2].notes[0]


def test_methods_with_gradients_say_why_a_function_will_not_do():
    for method in ("grad-cam", "saliency"):
        with pytest.raises(UnsupportedError, match=r"plain function has no .* lime"):
            pellucid.explain(network(linear), image(), method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 2}, "num_samples=2"),
        ({"budget": 0}, "budget=0"),
        ({"confidence": 95}, "confidence=95"),
        ({"rank_stability": 1}, "rank_stability=1"),
        ({"kernel_width": 0}, "kernel_width=0"),
        ({"segments": "voronoi"}, "segments='voronoi' is unknown"),
        ({"segments": np.zeros((3, 3), int)}, r"shape \(3, 3\)"),
        ({"replacement": "pink"}, "replacement='pink' is unknown"),
        ({"memory": 0}, "memory=0"),
        ({"num_features": 3}, "lime has 'num_features' with like='lime' alone"),
        ({"like": "lime", "budget": 300}, "like='lime' has no option 'budget'"),
        ({"like": "lime", "num_features": 0}, "num_features=0"),
        ({"like": "lime", "feature_selection": "lasso_path"}, "scikit-learn's path"),
        ({"like": "lime", "feature_selection": "best"}, "feature_selection='best' is unknown"),
        ({"samples": 5}, "no option 'samples'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(MethodError, match=message):
        pellucid.explain(network(linear), image(), "lime", **{**OPTIONS, **options})

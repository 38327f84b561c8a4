"""Claims about the mini-batches."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from models.analysis import load
from models.spec import spec_of
from pipeline.training import inputs
from pipeline.training.strategy import strategy_of
from tests import tiny


def test_an_epochs_order_is_a_permutation_that_only_seed_and_epoch_decide():
    first = inputs.order(3, 1, 100, 16)
    assert sorted(first) == list(range(100))
    np.testing.assert_array_equal(first, inputs.order(3, 1, 100, 16))
    assert (first != inputs.order(3, 2, 100, 16)).any()
    assert (first != inputs.order(4, 1, 100, 16)).any()


def test_texts_of_similar_length_share_a_batch_and_every_row_still_comes_once():
    lengths = np.random.default_rng(0).integers(1, 200, 3001)
    order = inputs.order(0, 0, 3001, 32, lengths)
    assert sorted(order) == list(range(3001))
    batches = [lengths[order[i : i + 32]] for i in range(0, 3001, 32)]
    padding = sum(len(b) * b.max() - b.sum() for b in batches) / sum(len(b) * b.max() for b in batches)
    plain = [lengths[i : i + 32] for i in range(0, 3001, 32)]
    unsorted = sum(len(b) * b.max() - b.sum() for b in plain) / sum(len(b) * b.max() for b in plain)
    assert padding < 0.1 < unsorted
    means = np.array([b.mean() for b in batches])
    assert (np.diff(means) < 0).mean() > 0.3  # batches are shuffled, not served from short to long


def test_the_last_batch_is_filled_with_rows_of_weight_zero():
    order = np.array([5, 3, 1, 0, 2, 4, 6])
    numbers, weights = inputs.weighted_batches(order, 4)
    assert numbers.shape == weights.shape == (2, 4)
    np.testing.assert_allclose(weights, [[0.25] * 4, [1 / 3, 1 / 3, 1 / 3, 0]])
    np.testing.assert_array_equal(numbers[weights > 0], order)
    assert numbers[1].tolist() == [2, 4, 6, 5]  # with another row: batch normalisation must not see one row twice


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    directory = tiny.records_dir("image", root)
    config, spec = tiny.config("image", root), spec_of("image")
    return config, spec, inputs.prepare(directory, config, spec, load(directory, "image"))


def take(image, start: int, count: int, strategy: str = "cpu", calls: int = 1, **train) -> list:
    """`count` batches (inputs, target, weights) from update number `start` on, over as many epochs as that takes."""
    config, spec, rows = image
    config, strategy = tiny.with_train(config, steps_per_call=calls, **train), strategy_of(strategy)
    part, batch = inputs.parts(rows, config, spec, strategy), inputs.batch(rows, config, spec)

    def one(numbers, weights, draws):
        return *batch(numbers[0], draws[0]), weights[0]

    parts = (part(start + i, 1) for i in range(count))
    return [strategy.run(one, args=(p.numbers, p.weights, p.draws)) for p in parts]


def test_a_part_of_several_updates_holds_the_batches_in_order_and_has_one_shape(image):
    config, spec, rows = image
    config = tiny.with_train(config, steps_per_call=4)  # 96 rows in batches of 16: six updates an epoch
    part = inputs.parts(rows, config, spec, strategy_of("cpu"))
    numbers, weights = inputs.weighted_batches(inputs.order(0, 1, 96, 16), 16)
    first, rest = part(6, 4), part(10, 2)
    np.testing.assert_array_equal(first.numbers, numbers[:4])
    np.testing.assert_array_equal(rest.numbers[:2], numbers[4:])
    np.testing.assert_array_equal(rest.weights[:2], weights[4:])
    assert rest.numbers.shape == first.numbers.shape
    assert (int(first.count), int(rest.count)) == (4, 2)


def test_starting_at_update_n_gives_what_an_undisturbed_stream_gives_there(image):
    whole = take(image, 0, 14)  # 96 rows in batches of 16: two epochs and a bit
    for start in (4, 6, 11):
        for (x, y, w), (x2, y2, w2) in zip(whole[start:], take(image, start, 14 - start), strict=True):
            np.testing.assert_array_equal(x["image"], x2["image"])
            np.testing.assert_array_equal(y, y2)
            np.testing.assert_array_equal(w, w2)


def test_augmentation_differs_between_epochs_and_is_the_same_for_a_row_in_any_batch_size(image):
    _, _, rows = image
    changed = dict.fromkeys(range(len(rows)), 0)
    for epoch in (0, 1):
        small = dict(zip(inputs.order(0, epoch, 96, 16), _images(take(image, epoch * 6, 6)), strict=True))
        large = dict(
            zip(inputs.order(0, epoch, 96, 48), _images(take(image, epoch * 2, 2, batch_size=48)), strict=True)
        )
        for row in range(96):
            np.testing.assert_array_equal(small[row], large[row])
            changed[row] += (small[row] != rows.inputs["image"][row].numpy()).any()
    assert sum(count > 0 for count in changed.values()) > 80


def test_two_replicas_share_a_batch_in_equal_contiguous_parts(image):
    ((x, y, w),) = take(image, 2, 1)
    ((x2, y2, w2),) = take(image, 2, 1, "mirrored")
    parts = [np.concatenate([p.numpy() for p in value.values]) for value in (x2["image"], y2, w2)]
    for whole, joined in zip((x["image"], y, w), parts, strict=True):
        np.testing.assert_array_equal(whole, joined)
    assert len(y2.values) == 2


def test_padding_of_a_text_batch_goes_no_further_than_its_longest_text(tmp_path):
    directory = tiny.records_dir("sentiment", tmp_path)
    config, spec = tiny.config("sentiment", tmp_path), spec_of("sentiment")
    rows = inputs.prepare(directory, config, spec, load(directory, "sentiment"))
    for x, _, _ in take((config, spec, rows), 0, 2):
        tokens = x["tokens"].numpy()
        assert (tokens[:, -1] != 0).any()


def test_a_training_label_that_is_no_class_stops_before_the_first_update(tmp_path):
    directory = tiny.records_dir("image", tmp_path)
    config = tiny.config("image", tmp_path)
    analysis = dataclasses.replace(load(directory, "image"), classes=("dark", "bright"))
    with pytest.raises(inputs.UserError, match="none of the classes"):
        inputs.prepare(directory, config, spec_of("image"), analysis)


def _images(batches) -> list[np.ndarray]:
    return list(np.concatenate([tf.convert_to_tensor(x["image"]).numpy() for x, _, _ in batches]))

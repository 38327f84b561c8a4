"""Claims about the mini-batches."""

import numpy as np
import pytest
import tensorflow as tf

from models.analysis import load
from models.spec import spec_of
from pipeline.training import inputs
from pipeline.training.rows import Column, Rows, prepare
from pipeline.training.strategy import strategy_of
from tests import tiny


def test_an_epochs_order_is_a_permutation_that_only_seed_and_epoch_decide():
    first = inputs.order(3, 1, 100, 16)
    assert sorted(first) == list(range(100))
    np.testing.assert_array_equal(first, inputs.order(3, 1, 100, 16))
    assert (first != inputs.order(3, 2, 100, 16)).any()
    assert (first != inputs.order(4, 1, 100, 16)).any()


def test_more_rows_than_are_shuffled_at_once_still_come_each_once_and_from_everywhere(monkeypatch):
    monkeypatch.setattr(inputs, "SHUFFLED", 4096)
    monkeypatch.setattr(inputs, "BLOCK", 64)
    first, second = inputs.order(0, 0, 20_001, 32), inputs.order(0, 1, 20_001, 32)
    assert sorted(first) == list(range(20_001))
    assert (first != second).mean() > 0.99
    head = first[:4096]
    assert np.histogram(head, 8, (0, 20_001))[0].min() > 200  # of 512 if it were even
    assert np.abs(np.diff(head)).mean() > 4000  # neighbours in the order are none in the records
    assert len(np.intersect1d(head, second[:4096])) < 2000


# Lengths as those of the Large Movie Reviews, cut at 1,000: log-normal, median 174, mean 234.
REVIEWS = np.clip(np.random.default_rng(0).lognormal(np.log(174), 0.77, 9001), 10, 1000).astype(int)


def test_texts_of_similar_length_share_a_batch_and_every_row_still_comes_once():
    lengths = REVIEWS
    order = inputs.order(0, 0, 9001, 32, lengths)
    assert sorted(order) == list(range(9001))
    batches = [lengths[order[i : i + 32]] for i in range(0, 9001, 32)]
    padding = sum(len(b) * b.max() - b.sum() for b in batches) / sum(len(b) * b.max() for b in batches)
    plain = [lengths[i : i + 32] for i in range(0, 9001, 32)]
    unsorted = sum(len(b) * b.max() - b.sum() for b in plain) / sum(len(b) * b.max() for b in plain)
    assert padding < 0.1 < unsorted
    means = np.array([b.mean() for b in batches])
    assert (np.diff(means) < 0).mean() > 0.3  # batches are shuffled, not served from short to long


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    made = {}
    for task in ("image", "sentiment"):
        directory, config, spec = tiny.records_dir(task, root), tiny.config(task, root), spec_of(task)
        made[task] = config, spec, prepare(directory, config, spec, load(directory, task), root / "unused")
    return made


@pytest.fixture
def image(prepared):
    return prepared["image"]


def take(made, start: int, count: int, strategy: str = "cpu", **train) -> list:
    """`count` batches (inputs, target, weights) from update number `start` on, over as many epochs as that takes."""
    config, spec, rows = made
    config, strategy = tiny.with_train(config, **{"steps_per_call": 1, **train}), strategy_of(strategy)
    batches = inputs.Batches(rows, config, strategy)

    def one(part):
        return *inputs.batch(part, 0, spec, config), part.weights[0]

    taken = [strategy.run(one, args=(batches.part(start + i, 1),)) for i in range(count)]
    batches.close()
    return taken


def test_the_last_batch_of_an_epoch_is_filled_with_other_rows_of_weight_zero(image):
    config, _, rows = image
    batches = inputs.Batches(rows, tiny.with_train(config, batch_size=36), strategy_of("cpu"))  # 96 = 36 + 36 + 24
    order = inputs.order(0, 1, 96, 36)
    numbers, weights = batches.examples(5)
    np.testing.assert_array_equal(numbers, [*order[72:], *order[:12]])  # batch norm must not see one row twice
    np.testing.assert_allclose(weights, [1 / 24] * 24 + [0] * 12)
    batches.close()


def test_the_last_batch_of_texts_is_filled_with_its_own_rows(prepared):
    """A lazy rule moves the table's rows of every text that is read, of weight 0, too: it must be of the batch."""
    config, _, rows = prepared["sentiment"]
    batches = inputs.Batches(rows, tiny.with_train(config, batch_size=36), strategy_of("cpu"))
    order = inputs.order(0, 1, 96, 36, rows.lengths)
    numbers, weights = batches._batches(4, 2)
    np.testing.assert_array_equal(numbers, [order[36:72], [*order[72:], *order[72:84]]])
    np.testing.assert_allclose(weights[1], [1 / 24] * 24 + [0] * 12)
    batches.close()


def test_the_short_batch_of_texts_is_not_always_the_longest_ones():
    lengths, means = REVIEWS[:1000], []
    for epoch in range(8):
        order = inputs.order(0, epoch, 1000, 32, lengths)
        assert sorted(order) == list(range(1000))
        means.append(lengths[order[-8:]].mean())
    assert max(means) > 1.5 * min(means)


def test_closed_batches_hold_no_rows(image):
    config, _, rows = image
    batches = inputs.Batches(rows, config, strategy_of("cpu"))
    batches.part(0, 1)
    batches.close()
    assert (batches._resident, batches._next) == ({}, {})


def test_a_part_of_several_updates_holds_the_batches_in_order_and_has_one_shape(image):
    config, _, rows = image
    batches = inputs.Batches(rows, tiny.with_train(config, steps_per_call=4), strategy_of("cpu"))
    order = inputs.order(0, 1, 96, 16).reshape(6, 16)
    first, rest = batches.part(6, 4), batches.part(10, 2)
    np.testing.assert_array_equal(first.examples, order[:4])
    np.testing.assert_array_equal(rest.examples[:2], order[4:])
    assert first.examples.shape == rest.examples.shape == (4, 16)
    assert [int(first.count), int(rest.count), int(rest.step), int(rest.epoch)] == [4, 2, 10, 1]
    batches.close()


@pytest.mark.parametrize("calls", [1, 2, 4, 6, 50])
def test_calls_end_with_the_epoch_and_its_last_update_is_made_alone(image, calls):
    config, _, rows = image
    batches = inputs.Batches(rows, tiny.with_train(config, steps_per_call=calls), strategy_of("cpu"))
    step, made = 0, []
    while step < 12:
        made.append(batches.counts(step))
        step += sum(made[-1])
    assert max(map(max, made)) <= calls
    ends = np.cumsum([count for counts in made for count in counts])
    assert {5, 6, 11, 12} <= set(ends.tolist())
    batches.close()


def test_starting_at_update_n_gives_what_an_undisturbed_stream_gives_there(image):
    whole = take(image, 0, 14)  # 96 rows in batches of 16: two epochs and a bit
    for start in (4, 6, 11):
        for (x, y, w), (x2, y2, w2) in zip(whole[start:], take(image, start, 14 - start), strict=True):
            np.testing.assert_array_equal(x["image"], x2["image"])
            np.testing.assert_array_equal(y, y2)
            np.testing.assert_array_equal(w, w2)


@pytest.mark.parametrize("task", ["image", "sentiment"])
def test_streamed_batches_are_those_in_memory(prepared, task):
    for here, there in zip(take(prepared[task], 4, 4), take(prepared[task], 4, 4, inputs="streamed"), strict=True):
        for one, other in zip(tf.nest.flatten(here), tf.nest.flatten(there), strict=True):
            np.testing.assert_array_equal(one, other)


def test_rows_gathered_for_a_whole_call_are_those_gathered_update_by_update(image):
    config, spec, rows = image
    batches = inputs.Batches(rows, tiny.with_train(config, steps_per_call=4), strategy_of("cpu"))
    part = batches.part(0, 4)
    whole = inputs.gathered(part)
    for i in range(4):
        for one, other in zip(*(tf.nest.flatten(inputs.batch(p, i, spec, config)) for p in (part, whole)), strict=True):
            np.testing.assert_array_equal(one, other)
    batches.close()


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
            changed[row] += (small[row] != rows.inputs["image"].values[row]).any()
    assert sum(count > 0 for count in changed.values()) > 80


def test_the_next_epochs_order_and_the_rows_of_three_calls_are_made_ahead_but_not_beside_short_calls(
    prepared, monkeypatch
):
    config, _, rows = prepared["image"]
    made, order = [], inputs.order
    monkeypatch.setattr(inputs, "order", lambda *arguments: made.append(arguments[1]) or order(*arguments))
    batches = inputs.Batches(rows, tiny.with_train(config, steps_per_call=4), strategy_of("cpu"))
    batches.part(0, 4)
    batches._ahead.submit(lambda: None).result()  # all before it is done
    assert made == [0, 1, 2]
    assert [*batches._next] == [(4, 1), (5, 1), (6, 4)]
    assert all(future.done() for future in batches._next.values())
    batches.part(4, 1)
    batches.part(5, 1)
    assert [*batches._next] == [(6, 4)]
    batches.part(6, 4)
    assert [*batches._next] == [(10, 1), (11, 1), (12, 4)]
    batches.close()


@pytest.mark.parametrize("place", ["memory", "streamed"])
@pytest.mark.parametrize("task", ["image", "sentiment"])
def test_two_replicas_share_a_batch_in_equal_contiguous_parts_of_one_width(prepared, task, place):
    ((x, y, w),) = take(prepared[task], 2, 1, inputs=place)
    ((x2, y2, w2),) = take(prepared[task], 2, 1, "mirrored", inputs=place)
    name = next(iter(x))
    parts = [np.concatenate([p.numpy() for p in value.values]) for value in (x2[name], y2, w2)]
    for whole, joined in zip((x[name], y, w), parts, strict=True):
        np.testing.assert_array_equal(whole, joined)
    assert len(y2.values) == 2


@pytest.mark.parametrize("place", ["memory", "streamed"])
def test_padding_of_a_text_batch_goes_no_further_than_its_longest_text(prepared, place):
    for x, _, _ in take(prepared["sentiment"], 0, 2, inputs=place, steps_per_call=3):
        tokens = x["tokens"].numpy()
        assert (tokens[:, -1] != 0).any()


def test_where_shapes_must_be_static_texts_are_padded_to_one_of_a_few_widths_and_padding_stays_small():
    tokens = Column(np.ones(REVIEWS.sum(), np.int32), np.concatenate([[0], np.cumsum(REVIEWS)]))
    rows = Rows({"tokens": tokens}, np.zeros(len(REVIEWS), np.int32))
    config = tiny.config("sentiment", "unused", jit=True, steps_per_call=50, batch_size=32)
    batches = inputs.Batches(rows, config, strategy_of("cpu"))
    widths, values, padded = set(), 0, 0
    for at in range(batches.per_epoch - 1):
        assert batches.counts(at) == [1]
        made = batches.part(at, 1).inputs["tokens"].values.numpy()
        widths.add(made.shape[-1])
        values, padded = values + made.sum(), padded + made.size
    batches.close()
    assert 10 < len(widths) <= inputs.WIDTHS
    assert 1 - values / padded < 0.09


def test_static_widths_reach_the_longest_text_whatever_the_lengths():
    for lengths in (REVIEWS, np.array([7]), np.array([3, 3, 3]), np.array([1, 1000])):
        assert inputs.widths(lengths)[-1] == lengths.max()


def _images(batches) -> list[np.ndarray]:
    return list(np.concatenate([tf.convert_to_tensor(x["image"]).numpy() for x, _, _ in batches]))

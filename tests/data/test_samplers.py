"""The order of training samples: seeded, complete, resumable, independent of processes."""

from collections import Counter

import pytest

from wavevit.data.samplers import EvalSampler, SampleRequest, TrainSampler


def requests(**arguments: int) -> list[list[SampleRequest]]:
    settings = {"num_samples": 23, "batch_size": 4, "seed": 7, "start": 0, "stop": 20}
    settings.update(arguments)
    size, batch = settings.pop("num_samples"), settings.pop("batch_size")
    return list(TrainSampler(size, batch, **settings))


def test_every_sample_comes_once_per_epoch_though_batches_span_epochs() -> None:
    stream = [index for batch in requests(stop=23) for index, _ in batch]
    for epoch in range(4):
        assert sorted(stream[23 * epoch : 23 * (epoch + 1)]) == list(range(23))
    assert stream[:23] != stream[23:46]


def test_any_start_continues_the_same_stream() -> None:
    whole = requests()
    for start in (1, 5, 6, 13, 19, 20):
        assert requests(start=start) == whole[start:]


def test_processes_together_take_what_one_process_takes() -> None:
    whole = requests(batch_size=6)
    for world in (2, 3):
        shares = [
            requests(batch_size=6 // world, rank=rank, num_processes=world) for rank in range(world)
        ]
        for step, batch in enumerate(whole):
            assert sorted(batch) == sorted(r for share in shares for r in share[step])


def test_accumulated_small_batches_are_the_large_batch() -> None:
    large = requests(batch_size=6, stop=10)
    small = requests(batch_size=3, stop=20)
    assert [small[2 * i] + small[2 * i + 1] for i in range(10)] == large


def test_batches_are_the_same_side_by_side_and_one_after_the_other() -> None:
    """Six batches a step, by one, two, three or six processes."""
    whole = requests(accumulate=6, stop=5)
    for world in (2, 3, 6):
        passes = 6 // world
        shares = [
            requests(accumulate=passes, stop=5, rank=rank, num_processes=world)
            for rank in range(world)
        ]
        for step in range(5):
            side_by_side = [
                shares[rank][step * passes + a] for a in range(passes) for rank in range(world)
            ]
            assert side_by_side == whole[step * 6 : step * 6 + 6]
    assert requests(accumulate=6, start=2, stop=5) == whole[12:]


def test_repeats_of_a_sample_lie_in_different_batches_of_a_step() -> None:
    batches = requests(repeats=3, accumulate=3, stop=2, num_samples=24)
    for step in (batches[:3], batches[3:]):
        for batch in step:
            assert len({index for index, _ in batch}) == len(batch)
        assert Counter(index for batch in step for index, _ in batch) == dict.fromkeys(
            (index for index, _ in step[0]), 3
        )


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_evaluation_batches_are_the_same_for_any_number_of_processes(world: int) -> None:
    whole = list(EvalSampler(23, 4))
    assert [index for batch in whole for index in batch] == list(range(23))
    assert len(EvalSampler(23, 4)) == len(whole) == 6
    shares = [EvalSampler(23, 4, rank=rank, num_processes=world) for rank in range(world)]
    dealt = [list(share) for share in shares]
    assert [len(share) for share in shares] == [len(batches) for batches in dealt]
    assert sorted(batch for batches in dealt for batch in batches) == whole


def test_more_processes_than_batches_leave_some_without() -> None:
    assert list(EvalSampler(3, 4, rank=2, num_processes=3)) == []


def test_seeds_differ_between_positions_and_runs() -> None:
    seeds = [seed for batch in requests() for _, seed in batch]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**64 for seed in seeds)
    other = [seed for batch in requests(seed=8) for _, seed in batch]
    assert set(seeds).isdisjoint(other)


def test_repeated_augmentation_repeats_samples_with_other_seeds_in_epochs_of_the_same_length() -> (
    None
):
    stream = [r for batch in requests(repeats=3, stop=6, num_samples=24) for r in batch]
    assert set(Counter(index for index, _ in stream).values()) == {3}
    assert len({seed for _, seed in stream}) == 24


def test_a_set_smaller_than_a_batch_fills_it_from_the_next_epochs() -> None:
    batch = requests(num_samples=3, batch_size=8, stop=1)[0]
    assert Counter(index for index, _ in batch[:6]) == {0: 2, 1: 2, 2: 2}


@pytest.mark.parametrize("arguments", [{"num_samples": 0}, {"batch_size": 0}, {"repeats": 0}])
def test_nothing_to_sample_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"is empty|must be at least 1"):
        requests(**arguments)

from cilium_agent.conntracks import MAX_INTERVAL_S, MIN_INTERVAL_S, next_interval


def test_many_dead_entries_shorten_the_interval_in_proportion():
    assert next_interval(300, 50, 100) == 150


def test_the_steepest_cut_is_to_a_tenth_and_never_below_the_floor():
    assert (
        round(next_interval(1000, 100, 100)),
        next_interval(20, 100, 100),
    ) == (100, MIN_INTERVAL_S)


def test_few_dead_entries_lengthen_it_up_to_the_ceiling():
    assert (
        next_interval(300, 0, 0),
        next_interval(MAX_INTERVAL_S, 1, 100),
        next_interval(500, 0, 10, max_interval_s=600),
    ) == (450, MAX_INTERVAL_S, 600)


def test_in_between_it_stays():
    assert next_interval(300, 10, 100) == 300

import pytest
from cilium_agent.endpoints.states import State, allowed, require
from cilium_agent.errors import IllegalTransitionError


def test_only_the_builder_begins_and_ends_a_build():
    for current, wanted in [
        (State.WAITING_TO_REGENERATE, State.REGENERATING),
        (State.RESTORING, State.REGENERATING),
        (State.REGENERATING, State.READY),
    ]:
        assert (allowed(current, wanted), allowed(current, wanted, builder=True)) == (False, True)


def test_every_living_state_leads_to_disconnecting():
    dead = {State.DISCONNECTING, State.DISCONNECTED, State.INVALID}
    assert all(allowed(state, State.DISCONNECTING) for state in set(State) - dead)


@pytest.mark.parametrize("state", [State.DISCONNECTED, State.INVALID])
def test_nothing_comes_after_the_end(state):
    assert not any(allowed(state, wanted, builder=True) for wanted in State)


def test_a_forbidden_way_is_refused_with_both_names():
    with pytest.raises(IllegalTransitionError, match="is ready cannot become regenerating"):
        require(State.READY, State.REGENERATING, builder=True)

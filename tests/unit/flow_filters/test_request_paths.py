"""Plain URLs are read at a glance, and mean what the rules make of them."""

from cilium_core.request_paths import _path_of_any, request_path
from hypothesis import given
from hypothesis import strategies as st

PARTS = st.sampled_from(
    ["http:", "https:", "ftp:", "/", "//", "host", ".", ":80", ":", "a-b", "~", "?", "x=1", "#",
     "%41", "%", " ", "@", "é", "\n", "*"]
)  # fmt: skip


@given(st.lists(PARTS, max_size=8).map("".join))
def test_a_glance_sees_what_the_rules_say(url):
    assert request_path(url) == _path_of_any(url)

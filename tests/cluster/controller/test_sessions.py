"""The registry remembers the last server of each session and forgets the least recently used."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.controller.sessions import SessionRegistry
from tests.cluster import QUICK


@QUICK
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["w0", "w1"])), max_size=40), st.integers(1, 4))
def test_it_holds_the_most_recently_served_sessions_and_no_more(served: list[tuple[str, str]], most: int) -> None:
    registry = SessionRegistry(most)
    for done, (session, worker) in enumerate(served, 1):
        registry.served(session, worker)
        newest = list(dict.fromkeys(name for name, _ in reversed(served[:done])))
        last = dict(served[:done])
        for name in "abcdef":
            assert registry.preferred(name) == (last[name] if name in newest[:most] else None)
        assert len(registry) == min(most, len(newest))

"""The tree against a list that is compared token by token."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.worker.prefix_tree import PrefixTree, _Node
from tests.cluster import WALK

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)


def shared(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    count = 0
    for ours, theirs in zip(left, right, strict=False):
        if ours != theirs:
            break
        count += 1
    return count


class TreeWalk(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tree = PrefixTree()
        self.known: dict[int, tuple[int, ...]] = {}
        self.number = 0

    @rule(tokens=TOKENS)
    def add(self, tokens: tuple[int, ...]) -> None:
        self.number += 1
        self.tree.add(self.number, tokens)
        self.known[self.number] = tokens

    @precondition(lambda self: self.known)
    @rule(data=st.data(), more=st.lists(st.integers(0, 2), max_size=4))
    def add_a_longer_one(self, data: st.DataObject, more: list[int]) -> None:
        self.add((*data.draw(st.sampled_from(sorted(self.known.values()))), *more))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.known)))
        self.tree.remove(number, self.known.pop(number))

    @rule(tokens=TOKENS)
    def search(self, tokens: tuple[int, ...]) -> None:
        best = max((shared(tokens, other) for other in self.known.values()), default=0)
        length, numbers = self.tree.longest(tokens)
        assert length == best
        assert sorted(numbers) == [number for number, other in self.known.items() if shared(tokens, other) == best]

    @invariant()
    def every_prefix_of_each_is_found(self) -> None:
        for tokens in self.known.values():
            expected = [number for number, other in self.known.items() if tokens[: len(other)] == other]
            assert sorted(self.tree.prefixes(tokens)) == expected

    @invariant()
    def no_node_is_kept_that_nobody_needs(self) -> None:
        """So the tree of an empty cache is empty, and one that has seen much is not slower than a fresh one."""

        def look(node: _Node) -> None:
            for child in node.children.values():
                assert child.through
                assert child.ends or len(child.children) > 1
                assert list(child.through) == [n for n in child.through if n in node.through]
                look(child)

        look(self.tree._root)
        assert len(self.tree._root.through) == len(self.known)


TestTreeWalk = TreeWalk.TestCase
TestTreeWalk.settings = WALK

"""Which of many token sequences begins most like a given one."""

from cluster.protocol import Token


class _Node:
    """label: the tokens between the parent and here. through: whose sequences lead here or further; ends: only here."""

    __slots__ = ("children", "ends", "label", "through")

    def __init__(self, label: tuple[Token, ...]) -> None:
        self.label = label
        self.children: dict[Token, _Node] = {}
        self.through: dict[int, None] = {}
        self.ends: dict[int, None] = {}

    def shared(self, tokens: tuple[Token, ...], at: int) -> int:
        """How many tokens from position `at` on agree with the label."""
        part = tokens[at : at + len(self.label)]
        if part == self.label:  # the usual case, and much faster than the loop
            return len(part)
        for count, (ours, theirs) in enumerate(zip(self.label, part, strict=False)):
            if ours != theirs:
                return count
        return len(part)

    def split(self, count: int) -> None:
        """Put a node between this one and its children, so that `count` tokens lead here."""
        below = _Node(self.label[count:])
        below.children, self.children = self.children, {self.label[count]: below}
        below.ends, self.ends = self.ends, {}
        below.through = dict(self.through)
        self.label = self.label[:count]

    def join(self) -> None:
        """Undo a split that nobody needs any more."""
        (below,) = self.children.values()
        self.label += below.label
        self.children, self.ends = below.children, below.ends


class PrefixTree:
    """Sequences by number, in a trie whose edges are runs of tokens.

    A search costs the length of what agrees, however many sequences there are. Unlike blocks that are looked up by
    their hash it finds the last token that agrees, and sequences that begin alike store their beginning once.
    """

    def __init__(self) -> None:
        self._root = _Node(())

    def add(self, number: int, tokens: tuple[Token, ...]) -> None:
        """Add a sequence under a number that none of those here has."""
        node, at = self._root, 0
        node.through[number] = None
        while at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                child = node.children[tokens[at]] = _Node(tokens[at:])
            shared = child.shared(tokens, at)
            if shared < len(child.label):
                child.split(shared)
            child.through[number] = None
            node, at = child, at + shared
        node.ends[number] = None

    def remove(self, number: int, tokens: tuple[Token, ...]) -> None:
        """Take out what was added so."""
        path = self._path(tokens)
        path[-1].ends.pop(number)
        for node in path:
            del node.through[number]
        for parent, child in zip(path[-2::-1], path[:0:-1], strict=True):
            if not child.through:
                del parent.children[child.label[0]]
            elif not child.ends and len(child.children) == 1:
                child.join()

    def longest(self, tokens: tuple[Token, ...]) -> tuple[int, list[int]]:
        """How many tokens the best agree with from the beginning, and the numbers of all that agree so far."""
        node, at = self._root, 0
        while at < len(tokens) and (child := node.children.get(tokens[at])) is not None:
            shared = child.shared(tokens, at)
            node, at = child, at + shared
            if shared < len(child.label):
                break
        return at, list(node.through)

    def prefixes(self, tokens: tuple[Token, ...]) -> list[int]:
        """The numbers of all sequences that `tokens`, a sequence of this tree, begins with, itself included."""
        return [number for node in self._path(tokens) for number in node.ends]

    def _path(self, tokens: tuple[Token, ...]) -> list[_Node]:
        path, at = [self._root], 0
        while at < len(tokens):
            path.append(path[-1].children[tokens[at]])
            at += len(path[-1].label)
        return path

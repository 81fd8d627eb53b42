"""The record of what nodes decide: whole runs recorded and played again, and what a changed node is told from."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.birth import Birth
from cluster.node import AnyEvent, Ask, Command, Event, LinkUp, Received, Wake
from cluster.policy import ClientPolicy, Policy
from cluster.protocol import Pong
from cluster.record import Record, Recorder, RecordError, encoded, records
from cluster.replay import Replay, recorded_answer, replay
from cluster.simulation.cluster import RowList, SimulatedCluster
from cluster.simulation.network import Condition
from tests.mutants.mutant import in_place
from tests.mutants.plants import MUTANTS

POLICY = Policy(client=ClientPolicy(deadline_s=4.0))
UP_S = 1.0
LOAD_S = 5.0
RATE_PER_S = 20
NODES = ("controller", "worker-0", "worker-1", "client-0")

Trouble = tuple[str, str, float, float]
"""What is done to which node, when in the load, and after how many seconds it is undone."""

troubles = st.lists(
    st.tuples(
        st.sampled_from(["freeze", "cut", "restart", "drain", "skew"]),
        st.sampled_from(NODES[:3]),
        st.floats(0.0, 3.0),
        st.floats(0.5, 2.0),
    ),
    max_size=3,
)


def hurt(cluster: SimulatedCluster, trouble: Trouble) -> None:
    what, node, at_s, for_s = trouble
    kernel, begins_s = cluster.kernel, UP_S + at_s

    def set_condition(condition: Condition) -> Callable[[], None]:
        return lambda: cluster.nodes[node].link.set_condition(condition)

    match what:
        case "freeze":
            kernel.at(begins_s, lambda: cluster.freeze(node))
            kernel.at(begins_s + for_s, lambda: cluster.thaw(node))
        case "cut":
            kernel.at(begins_s, set_condition(Condition(refused=True)))
            kernel.at(begins_s + for_s, set_condition(Condition()))
        case "restart":
            kernel.at(begins_s, lambda: cluster.restart(node))
        case "drain" if node.startswith("worker-"):
            kernel.at(begins_s, lambda: cluster.drain(node))
        case "skew":
            cluster.clock_ahead_s[node] = 60.0
            kernel.at(begins_s, lambda: cluster.restart(node))


def recorded(folder: Path, seed: int, plan: list[Trouble], bytes_max: int = 2**20) -> list[Path]:
    """Of a small cluster under load, to which the plan is done."""
    recorders: list[Recorder] = []

    def recorder(birth: Birth, ahead_s: float) -> Recorder:
        recorders.append(Recorder(folder, birth, ahead_s, bytes_max))
        return recorders[-1]

    cluster = SimulatedCluster(POLICY, 2, 1, seed, lambda *_: RowList(), recorders=recorder)
    client, randomness = cluster.nodes["client-0"], Random(seed)
    client._delivered = lambda delivery: None  # type: ignore[method-assign]
    cluster.start()
    for number in range(int(LOAD_S * RATE_PER_S)):
        prompt = tuple(randomness.randrange(256) for _ in range(randomness.randrange(4, 40)))
        intended_s = UP_S + number / RATE_PER_S
        ask = Ask(f"r{number}", "timed", prompt, 24, intended_s, 4.0, session_id=f"s{number % 7}")
        cluster.kernel.at(intended_s, lambda ask=ask: client.feed(ask))
    for trouble in plan:
        hurt(cluster, trouble)
    cluster.kernel.run_until(UP_S + LOAD_S + 5.0)
    for node in cluster.nodes.values():
        node.stop()
    for each in recorders:
        each.close()
    return records(folder)


def replayed(paths: list[Path]) -> list[Replay]:
    return [replay(Record(path)) for path in paths]


@settings(max_examples=15, deadline=None, database=None)
@given(st.integers(0, 10_000), troubles)
def test_whatever_happens_to_a_cluster_its_nodes_decide_the_same_again(seed: int, plan: list[Trouble]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = replayed(recorded(Path(folder), seed, plan))
    assert {one.node for one in found} == set(NODES)
    assert [one for one in found if one.difference is not None or one.end] == []
    assert all(one.commands > 10 for one in found if one.incarnation == 1 and not plan)
    # Even where no worker takes anything for the whole of it.
    assert sum(one.events for one in found) > 300


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    cut: Trouble = ("cut", "worker-0", 1.0, 2.0)
    frozen: Trouble = ("freeze", "worker-1", 2.0, 0.6)
    return recorded(tmp_path_factory.mktemp("record"), 3, [cut, frozen, ("restart", "controller", 2.5, 1.0)])


@pytest.mark.parametrize(
    ("mutant", "role"),
    [
        ("silent_streams_kept", "controller"),
        ("suspected_get_work", "controller"),
        ("no_responders_ignored", "controller"),
        ("slot_leaks", "worker"),
        ("last_tokens_lost", "worker"),
        ("dropped_by_a_restart", "client"),
        ("never_submitted_again", "client"),
    ],
)
def test_a_node_with_a_planted_bug_is_told_from_the_one_that_was_recorded(
    paths: list[Path], mutant: str, role: str
) -> None:
    assert all(one.difference is None for one in replayed(paths))
    with in_place(MUTANTS[mutant]):
        found = replayed(paths)
    assert {one.role for one in found if one.difference is not None} == {role}


def test_a_cut_file_is_compared_up_to_its_last_whole_frame(paths: list[Path], tmp_path: Path) -> None:
    path = next(path for path in paths if "worker-0" in path.name)
    whole, complete = path.read_bytes(), replay(Record(path))
    opening_bytes = 12 + int.from_bytes(whole[:4], "little")
    counts = []
    for size in range(0, len(whole), max(1, len(whole) // 60)):
        cut = tmp_path / path.name
        cut.write_bytes(whole[:size])
        if size < opening_bytes:
            with pytest.raises(RecordError, match=r"is cut|has no end"):
                Record(cut)
            continue
        found = replay(Record(cut))
        assert found.difference is None
        assert "killed" in found.end
        counts.append(found.events)
    assert counts == sorted(counts)
    assert len(set(counts)) > 10
    assert max(counts) <= complete.events


def test_a_damaged_file_is_refused_in_one_line(paths: list[Path], tmp_path: Path) -> None:
    path = next(path for path in paths if "controller" in path.name)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / path.name).write_bytes(damaged)
    with pytest.raises(RecordError, match="damaged at byte"):
        replay(Record(tmp_path / path.name))
    (tmp_path / "decisions.x.1.record").write_text("not a record, but longer than the head of a frame is")
    with pytest.raises(RecordError):
        Record(tmp_path / "decisions.x.1.record")


def test_a_full_record_ends_and_says_so_and_its_node_goes_on(tmp_path: Path) -> None:
    birth, told = Birth("client", "client-0", 1, POLICY), list[str]()
    recorder, node = Recorder(tmp_path, birth, bytes_max=2_000), birth.node()
    recorder.told = told.append
    for number in range(200):
        recorder.handle(node, Received(Pong("controller", 1, Random(number).random())), float(number))
        recorder.flush()
    recorder.close()
    assert len(told) == 1
    assert "are full" in told[0]
    assert recorder.path.stat().st_size < 3_000
    found = replay(Record(recorder.path))
    assert found.difference is None
    assert 5 < found.events < 200
    assert found.end == told[0]


def test_a_disk_that_takes_nothing_ends_the_record_and_not_the_node(tmp_path: Path) -> None:
    birth, told = Birth("client", "client-0", 1, POLICY), list[str]()
    recorder, node, twin = Recorder(tmp_path / "not there", birth), birth.node(), birth.node()
    recorder.told = told.append
    for event in (LinkUp(), Received(Pong("controller", 1, 1.0)), Wake()):
        assert recorder.handle(node, event, 2.0) == twin.handle(event, 2.0)
        recorder.flush()
    recorder.close()
    assert len(told) == 1
    assert "cannot record" in told[0]


def test_what_a_node_raises_is_its_last_step(tmp_path: Path) -> None:
    birth = Birth("client", "client-0", 1, POLICY)
    recorder, node = Recorder(tmp_path, birth), birth.node()
    ask = Ask("r", "m", (1,), 1, 0, 5)
    recorder.handle(node, ask, 0.0)
    with pytest.raises(ValueError, match="is open already"):
        recorder.handle(node, ask, 1.0)
    recorder.close()
    record = Record(recorder.path)
    assert "is open already" in list(record.steps())[-1].raised
    found = replay(record)
    assert (found.events, found.difference) == (2, None)


def test_every_event_can_be_read_again_and_every_row_has_its_kind_back(paths: list[Path]) -> None:
    # The simulated network has some of its own, which never reach a node.
    own = {kind for kind in Event.__subclasses__() if kind.__module__ == Event.__module__}
    assert set(AnyEvent.__args__) == own
    kinds: set[type] = set()
    for path in paths:
        for step in Record(path).steps():
            answer = recorded_answer(step)
            assert encoded(answer.commands) == bytes(step.commands)
            kinds |= {type(command) for command in answer.commands}
            kinds |= {type(command.row) for command in answer.commands if hasattr(command, "row")}
    assert {kind.__name__ for kind in kinds} >= {"Send", "Insert", "Deliver", "RequestRow", "AttemptRow", "EventRow"}
    assert all(issubclass(kind, Command | msgspec.Struct) for kind in kinds)

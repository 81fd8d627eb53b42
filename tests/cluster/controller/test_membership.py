"""Liveness by the controller's own clock: suspected, dead, back, restarted, and never buried by a blind controller."""

import pytest
from msgspec import structs

from cluster.controller.membership import Liveness, Membership
from cluster.policy import MembershipPolicy
from cluster.protocol import Heartbeat, ModelState

POLICY = MembershipPolicy(heartbeat_s=0.5, suspect_after_s=1.6, dead_after_s=5.0, workers_max=3)


def beat(
    worker: str = "w", incarnation: int = 1, sent_s: float = 0.0, state: str = "warm", draining: bool = False
) -> Heartbeat:
    return Heartbeat(worker, incarnation, sent_s, (ModelState("m", state),), 0, 0, 8, draining)


def liveness(membership: Membership, worker: str = "w") -> Liveness:
    return membership.members[worker].liveness


def serves(membership: Membership) -> bool:
    return any(member.serves("m") for member in membership.members.values())


def told(membership: Membership, now: float) -> list[Liveness]:
    return [change.liveness for change in membership.sweep(now)]


def test_a_silent_worker_is_suspected_and_then_dead_and_a_heartbeat_brings_it_back() -> None:
    members = Membership(POLICY)
    joined = members.heard(beat(), 10.0)
    assert [(change.joined, change.restarted) for change in joined] == [(True, False)]
    assert members.next_sweep() == 11.6
    assert told(members, 11.59) == []
    assert told(members, 11.6) == [Liveness.SUSPECTED]
    assert not serves(members)
    assert members.any_alive()
    assert members.next_sweep() == 15.0
    assert told(members, 15.0) == [Liveness.DEAD]
    assert not members.any_alive()
    assert not members.knows_model("m")
    assert members.next_sweep() is None
    assert [change.liveness for change in members.heard(beat(), 30.0)] == [Liveness.READY]
    assert serves(members)


def test_a_controller_that_did_not_run_takes_its_own_silence_for_nobodys_death() -> None:
    members = Membership(POLICY)
    members.heard(beat(), 0.0)
    assert told(members, 60.0) == []
    assert liveness(members) is Liveness.READY
    overdue_s = 60.0 + POLICY.suspect_after_s
    assert told(members, overdue_s) == [Liveness.SUSPECTED]


@pytest.mark.parametrize("skew_s", [-1e6, 1e6])
def test_a_skewed_clock_does_not_make_a_worker_dead(skew_s: float) -> None:
    members = Membership(POLICY)
    for step in range(40):
        members.heard(beat(sent_s=step * 0.5 + skew_s), step * 0.5)
        assert told(members, step * 0.5) == []
    assert members.members["w"].clock.to_theirs(20.0) <= 20.0 + skew_s


@pytest.mark.parametrize(("state", "draining"), [("failed", False), ("warm", True), ("cold", True)])
def test_a_worker_that_cannot_load_the_model_or_drains_serves_nobody(state: str, draining: bool) -> None:
    members = Membership(POLICY)
    members.heard(beat(state=state, draining=draining), 0.0)
    assert not serves(members)
    assert members.knows_model("m")
    assert not members.knows_model("other")


def test_the_time_of_a_load_counts_from_the_first_heartbeat_that_told_of_it() -> None:
    members = Membership(POLICY)
    for tick, (state, since_s) in enumerate([("cold", None), ("loading", 0.5), ("loading", 0.5), ("warm", None)]):
        members.heard(beat(state=state), tick * 0.5)
        assert members.members["w"].loading_since_s == since_s


def test_a_worker_whose_engine_is_silent_gets_no_work_until_it_answers_and_is_never_buried_for_that() -> None:
    members = Membership(POLICY)
    for tick in range(30):
        changes = members.heard(structs.replace(beat(), engine_silent_s=tick * 0.5), tick * 0.5)
        assert [change.liveness for change in changes] == {0: [Liveness.READY], 7: [Liveness.SUSPECTED]}.get(tick, [])
        assert serves(members) is (tick < 7)
        assert told(members, tick * 0.5) == []
    assert [change.liveness for change in members.heard(beat(), 15.0)] == [Liveness.READY]
    patient = Membership(structs.replace(POLICY, engine_silent_max_s=None))
    patient.heard(structs.replace(beat(), engine_silent_s=1e6), 0.0)
    assert serves(patient)


def test_a_higher_incarnation_is_a_restart_and_the_old_one_is_a_ghost_from_then_on() -> None:
    members = Membership(POLICY)
    members.heard(beat(incarnation=1, sent_s=900.0), 0.0)
    changes = members.heard(beat(incarnation=2, sent_s=3.0), 1.0)
    assert [(change.joined, change.restarted) for change in changes] == [(True, True)]
    assert members.members["w"].clock.to_theirs(1.0) == 3.0, "the clock of the old incarnation is forgotten"
    assert members.heard(beat(incarnation=1, state="cold"), 2.0) == []
    assert serves(members)
    assert members.next_sweep() == 1.0 + 1.6, "the ghost's heartbeat is no sign of life"


def test_tokens_keep_a_ready_worker_alive_but_do_not_revive_an_overdue_one() -> None:
    members = Membership(POLICY)
    members.heard(beat(), 0.0)
    members.heard_report("w", 1, 1.0, 1.0)
    assert told(members, 2.5) == []
    members.heard_report("w", 2, 2.5, 2.5)
    assert told(members, 2.6) == [Liveness.SUSPECTED], "another incarnation's tokens do not count"
    members.heard_report("w", 1, 2.7, 2.7)
    assert liveness(members) is Liveness.SUSPECTED
    members.heard_report("nobody", 1, 2.7, 2.7)
    assert list(members.members) == ["w"]


def test_nobody_listening_means_suspected_until_heard_again() -> None:
    members = Membership(POLICY)
    members.heard(beat(), 0.0)
    assert [change.liveness for change in members.unreachable("w", 0.5)] == [Liveness.SUSPECTED]
    assert members.unreachable("w", 0.6) == []
    assert members.unreachable("nobody", 0.6) == []
    assert not serves(members)
    members.heard(beat(), 0.7)
    assert serves(members)


def test_a_controller_without_a_link_buries_nobody_and_gives_everybody_the_full_time_afterwards() -> None:
    members = Membership(POLICY)
    members.heard(beat(), 0.0)
    members.go_blind()
    assert told(members, 100.0) == []
    assert liveness(members) is Liveness.READY
    members.see_again(200.0)
    assert told(members, 201.5) == []
    assert told(members, 201.6) == [Liveness.SUSPECTED]
    assert told(members, 205.0) == [Liveness.DEAD]


def test_those_who_were_dead_stay_dead_when_sight_returns() -> None:
    members = Membership(POLICY)
    members.heard(beat(), 0.0)
    members.sweep(POLICY.suspect_after_s)
    members.sweep(POLICY.dead_after_s)
    members.go_blind()
    members.see_again(20.0)
    assert liveness(members) is Liveness.DEAD
    assert members.next_sweep() is None


def test_the_membership_is_bounded() -> None:
    members = Membership(POLICY)
    for number in range(5):
        members.heard(beat(f"w{number}"), 0.0)
    assert list(members.members) == ["w0", "w1", "w2"]
    members.heard(beat("w1", incarnation=2), 0.0)
    assert members.members["w1"].heartbeat.incarnation == 2


def test_a_new_worker_takes_the_place_of_the_longest_dead_and_of_nobody_alive() -> None:
    members = Membership(POLICY)
    for at_s, worker in enumerate(["w0", "w1", "w2"]):
        members.heard(beat(worker), 0.1 * at_s)
    assert members.heard(beat("w3"), 0.3) == []
    members.heard(beat("w0"), 4.0)
    for _ in range(2):
        members.sweep(members.next_sweep() or 0.0)
    assert [liveness(members, worker) for worker in ("w1", "w2")] == [Liveness.SUSPECTED] * 2
    assert members.heard(beat("w3"), 5.0) == []
    assert told(members, 5.3).count(Liveness.DEAD) == 2
    gone, come = members.heard(beat("w3"), 5.3)
    assert (gone.worker, gone.forgotten) == ("w1", True)
    assert (come.worker, come.joined) == ("w3", True)
    assert list(members.members) == ["w0", "w2", "w3"]


@pytest.mark.parametrize("heard_s", [0.1, 0.7, 4.02, 12.3, 1e5 + 0.1])
def test_a_sweep_at_the_time_it_asked_for_never_asks_for_the_same_time_again(heard_s: float) -> None:
    members = Membership(POLICY)
    members.heard(beat(), heard_s)
    seen: list[float] = []
    while (sweep_s := members.next_sweep()) is not None:
        assert sweep_s not in seen, "virtual time would stand still"
        seen.append(sweep_s)
        members.sweep(sweep_s)
    assert liveness(members) is Liveness.DEAD

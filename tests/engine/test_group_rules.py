"""Groups, as lists of events. Role: SEMANTICS 4, second half, row by row; end to end they stand in e2e/test_groups.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
from engine_rig import KERNEL, Rig, only

from jupyter_tasks.engine.cancel import TERMINATE_GRACE
from jupyter_tasks.engine.events import (
    Cancel,
    ClientGone,
    GroupClosed,
    GroupKept,
    GroupMade,
    GroupTold,
    Interrupt,
    Kill,
    Recall,
    Released,
    Run,
    Submitted,
    Task,
    Terminate,
    Tick,
    TooMuchMemory,
)
from jupyter_tasks.engine.groups import GROUP_GRACE, MOST_FAILED, Group
from jupyter_tasks.engine.states import State
from jupyter_tasks.wire.frames import HEADER_SIZE, Flag, Kind, from_json


class GroupRig(Rig):
    """A rig that makes groups, and keeps what was told of each."""

    def group(self, *, parent: Group | None = None, task: Task | None = None, owner: int = KERNEL, **how: Any) -> Group:
        group = Group(next(self._ids), owner, how.pop("name", "g"), **how)
        self.event(GroupMade(group, task.id if task else 0, parent.id if parent else 0))
        return group

    def member(self, group: Group, **options: Any) -> Task:
        """A task that waits for a slot, or has been given to one."""
        task = self.task(**options)
        task.group_id = group.id
        self.event(Submitted([task]))
        return task

    def running_member(self, group: Group, **options: Any) -> Task:
        task = self.member(group, **options)
        assert task.lease is not None
        self.start(task)
        return task

    def close(self, group: Group) -> None:
        self.event(GroupClosed(group.id))

    def at(self, seconds: float) -> list[Any]:
        """So much later."""
        self.now += seconds
        return self.event(Tick())


@pytest.fixture
def rig() -> GroupRig:
    return GroupRig(cpu=4, packet=1, depth=1)


# -- how a group ends ---------------------------------------------------------------------------------------------


def test_a_group_is_completed_when_its_block_is_left_and_all_members_have_returned(rig: GroupRig) -> None:
    """RUNNING until then, also while nothing runs in its block."""
    group = rig.group()
    first, second = rig.running_member(group), rig.running_member(group)
    rig.finish(first)
    rig.finish(second)
    assert (group.state, group.kind) == ("running", 0)
    rig.close(group)
    assert group.state == "completed"
    (kind, body) = rig.outcomes()[group.id][0]
    assert kind == Kind.RESULT
    assert from_json(body)["counts"] == {"completed": 2}


def test_a_block_that_is_left_waits_for_its_members(rig: GroupRig) -> None:
    """Also for one that has not started."""
    group = rig.group()
    blocker = [rig.running() for _ in range(4)]
    member = rig.member(group)
    rig.close(group)
    assert group.state == "running"
    rig.finish(blocker[0])
    rig.start(member)
    rig.finish(member)
    assert group.state == "completed"


def test_an_empty_group_is_completed_when_its_block_is_left(rig: GroupRig) -> None:
    group = rig.group()
    rig.close(group)
    assert group.state == "completed"


@pytest.mark.parametrize("how", ["raised", "crashed"])
def test_a_group_has_failed_if_a_member_failed_or_crashed(rig: GroupRig, how: str) -> None:
    """Said when all members are final, not before; the failed one's outcome is kept for whoever leaves the block."""
    group = rig.group()
    bad, good = rig.running_member(group, max_retries=0), rig.running_member(group)
    rig.close(group)
    if how == "raised":
        rig.fail(bad)
    else:
        assert bad.lease is not None
        rig.die(bad.lease, bad)
    assert group.state == "running"
    rig.finish(good)
    assert group.state == "failed"
    assert group.failed == [bad.id]
    rig.event(Released(KERNEL, [bad.id]))
    assert bad.id in rig.scheduler.objects
    rig.event(Released(KERNEL, [group.id]))
    assert bad.id not in rig.scheduler.objects


def test_a_member_that_was_cancelled_alone_does_not_fail_the_group(rig: GroupRig) -> None:
    group = rig.group()
    one, other = rig.running_member(group), rig.running_member(group)
    rig.close(group)
    rig.cancel(one)
    rig.stop(one)
    rig.finish(other)
    assert group.state == "completed"
    assert group.counts == {State.CANCELLED: 1, State.COMPLETED: 1}


def test_what_fails_because_another_member_did_is_not_a_failure_of_its_own(rig: GroupRig) -> None:
    """The root cause is raised once."""
    group = rig.group()
    bad = rig.running_member(group)
    dependent = rig.member(group, deps=[bad.id])
    rig.close(group)
    rig.fail(bad)
    assert dependent.state is State.FAILED
    assert group.state == "failed"
    assert group.failed == [bad.id]


def test_only_so_many_errors_are_kept(rig: GroupRig) -> None:
    group = rig.group()
    for _ in range(MOST_FAILED + 5):
        rig.fail(rig.running_member(group))
    rig.close(group)
    assert len(group.failed) == MOST_FAILED
    assert group.counts == {State.FAILED: MOST_FAILED + 5}


# -- who is a member ----------------------------------------------------------------------------------------------


def test_what_a_member_submits_is_a_member(rig: GroupRig) -> None:
    group = rig.group()
    parent = rig.running_member(group)
    child = rig.submit(parent=parent.id, owner=2)
    assert child.group is group
    rig.close(group)
    rig.finish(parent)
    assert group.state == "running"
    rig.start(child)
    rig.finish(child)
    assert group.state == "completed"
    assert group.submitted == 2


def test_a_group_of_a_task_is_inside_the_task_s_group(rig: GroupRig) -> None:
    """Its members count for both."""
    outer = rig.group()
    task = rig.running_member(outer)
    inner = rig.group(task=task, owner=2)
    rig.running_member(inner, owner=2)
    assert inner.outer is outer
    assert (inner.submitted, outer.submitted) == (1, 2)


def test_a_group_that_is_over_takes_no_members(rig: GroupRig) -> None:
    """A final state stays final: the task is one without a group (the client refuses it before)."""
    group = rig.group()
    rig.close(group)
    task = rig.member(group)
    assert task.group is None
    assert group.submitted == 0


# -- cancel -------------------------------------------------------------------------------------------------------


def test_a_cancel_ends_those_that_wait_and_interrupts_those_that_run(rig: GroupRig) -> None:
    """CANCELLING while members clean up, CANCELLED when every one is final."""
    group = rig.group()
    running = [rig.running_member(group) for _ in range(4)]
    waiting = rig.member(group)
    out = rig.cancel(group.id)
    assert waiting.state is State.CANCELLED
    assert [i.task for i in out if isinstance(i, Interrupt)] == running
    assert group.state == "cancelling"
    assert only([i for i in out if isinstance(i, GroupTold) and i.at_once], GroupTold).group is group
    for task in running:
        assert group.state == "cancelling"
        rig.stop(task)
    assert group.state == "cancelled"
    assert {rig.failure(task)["source"] for task in (*running, waiting)} == {"group"}


def test_a_member_that_completed_before_the_cancel_keeps_its_value(rig: GroupRig) -> None:
    group = rig.group()
    done = rig.running_member(group)
    rig.finish(done)
    rig.running_member(group)
    rig.cancel(group.id)
    assert done.state is State.COMPLETED
    assert done.kind == Kind.RESULT


@pytest.mark.parametrize(("kind", "state"), [(Kind.RESULT, State.COMPLETED), (Kind.ERROR, State.FAILED)])
def test_a_member_that_ends_anyway_keeps_its_true_state(rig: GroupRig, kind: int, state: State) -> None:
    """The group is CANCELLED all the same: that is what was asked of it."""
    group = rig.group()
    member = rig.running_member(group)
    rig.cancel(group.id)
    rig.finish(member, kind)
    assert member.state is state
    assert group.state == "cancelled"


def test_nothing_starts_in_a_cancelled_group(rig: GroupRig) -> None:
    """Whoever submits it: the block, a member, or a group inside; and also after the group is final."""
    group = rig.group()
    member = rig.running_member(group)
    rig.cancel(group.id)
    by_block = rig.member(group)
    by_member = rig.submit(parent=member.id, owner=2)
    inner = rig.group(parent=group)
    by_inner = rig.member(inner)
    rig.stop(member)
    assert group.state == "cancelled"
    late = rig.member(group)
    for task in (by_block, by_member, by_inner, late):
        assert task.state is State.CANCELLED
        assert from_json(task.frame[HEADER_SIZE:])["rung"] == "pending"
    assert rig.ran() == [[member.id]]
    assert group.submitted == 5


def test_nothing_is_retried_in_a_cancelled_group(rig: GroupRig) -> None:
    """Neither what crashes while it is cancelled nor what waits for its next attempt."""
    group = rig.group()
    waits = rig.running_member(group, retry_delay=5.0)
    runs = rig.running_member(group)
    rig.fail(waits, retryable=True)
    assert waits.state is State.PENDING
    rig.cancel(group.id)
    assert waits.state is State.CANCELLED
    assert runs.lease is not None
    rig.die(runs.lease, runs)
    assert runs.state is State.CRASHED
    assert group.state == "cancelled"


def test_a_cancel_of_a_group_that_is_over_is_a_no_op(rig: GroupRig) -> None:
    group = rig.group()
    rig.finish(rig.running_member(group))
    rig.close(group)
    assert rig.cancel(group.id) == []
    assert group.state == "completed"


def test_cancelling_twice_is_idempotent(rig: GroupRig) -> None:
    """No second interrupt, no later deadline."""
    group = rig.group()
    member = rig.running_member(group)
    rig.cancel(group.id)
    deadline = rig.scheduler.next_timer()
    rig.now += 3
    assert rig.cancel(group.id, reason="again") == []
    assert rig.scheduler.next_timer() == deadline
    assert member.cancel is not None
    assert "again" not in member.cancel.reason


def test_each_member_gets_one_interrupt_also_if_another_member_has_submitted_it(rig: GroupRig) -> None:
    group = rig.group()
    parent = rig.running_member(group)
    child = rig.submit(parent=parent.id, owner=2)
    rig.start(child)
    out = rig.cancel(group.id)
    assert sorted(i.task.id for i in out if isinstance(i, Interrupt)) == sorted([parent.id, child.id])


def test_force_kills_at_once_also_after_a_soft_cancel(rig: GroupRig) -> None:
    group = rig.group()
    member = rig.running_member(group)
    rig.cancel(group.id)
    out = rig.cancel(group.id, force=True)
    assert only(out, Kill).task is member
    assert member.lease is not None
    rig.die(member.lease, member, ours=True)
    assert group.state == "cancelled"


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [(None, None, GROUP_GRACE), (3.0, None, 3.0), (3.0, 1.0, 1.0), (None, 0.0, 0.0)],
    ids=["default", "its own", "asked", "none"],
)
def test_a_deadline_escalates(rig: GroupRig, own: float | None, asked: float | None, expected: float) -> None:
    """Never stuck in CANCELLING: interrupt, after the grace SIGTERM, one second later the kill."""
    group = rig.group(grace=own)
    member = rig.running_member(group)
    rig.cancel(group.id, grace=asked)
    if expected:
        assert not [i for i in rig.at(expected - 0.01) if isinstance(i, Terminate)]
    assert only(rig.at(min(expected, 0.01)), Terminate).task is member
    assert only(rig.at(TERMINATE_GRACE), Kill).task is member
    assert member.lease is not None
    rig.die(member.lease, member, ours=True)
    assert group.state == "cancelled"


def test_an_infinite_grace_never_climbs(rig: GroupRig) -> None:
    group = rig.group(grace=math.inf)
    rig.running_member(group)
    rig.cancel(group.id)
    assert rig.scheduler.next_timer() is None


def test_a_member_that_was_cancelled_before_gets_the_group_s_deadline(rig: GroupRig) -> None:
    """And no second interrupt: it has swallowed the first one, and would stay for ever."""
    group = rig.group(grace=2.0)
    member = rig.running_member(group)
    rig.cancel(member)
    out = rig.cancel(group.id)
    assert not [i for i in out if isinstance(i, Interrupt)]
    assert only(rig.at(2.0), Terminate).task is member


def test_a_cancel_reaches_groups_inside(rig: GroupRig) -> None:
    """All the way down, and the outer one is CANCELLED after the inner one."""
    outer = rig.group()
    middle = rig.group(parent=outer)
    inner = rig.group(parent=middle, grace=1.0)
    member = rig.running_member(inner)
    rig.cancel(outer.id)
    assert [g.state for g in (outer, middle, inner)] == ["cancelling"] * 3
    assert only(rig.at(1.0), Terminate).task is member  # its own grace, shorter than the outer one's
    rig.stop(member)
    assert [g.state for g in (outer, middle, inner)] == ["cancelled"] * 3


def test_a_cancel_of_an_inner_group_leaves_the_outer_one_alone(rig: GroupRig) -> None:
    outer = rig.group()
    inner = rig.group(parent=outer)
    other = rig.running_member(outer)
    member = rig.running_member(inner)
    rig.cancel(inner.id)
    rig.stop(member)
    rig.close(outer)
    assert (inner.state, outer.state) == ("cancelled", "running")
    rig.finish(other)
    assert outer.state == "completed"


def test_a_member_on_its_way_to_a_worker_is_taken_back(rig: GroupRig) -> None:
    """It may have begun without our knowing: the group waits for that word."""
    group = rig.group()
    member = rig.member(group)  # given, and nothing heard of it
    out = rig.cancel(group.id)
    lease = only(out, Recall).lease
    assert group.state == "cancelling"
    rig.recalled(lease, member)
    assert group.state == "cancelled"


# -- fail_fast, auto, owners --------------------------------------------------------------------------------------


def test_fail_fast_cancels_the_others(rig: GroupRig) -> None:
    """And the group has FAILED: nobody has cancelled it."""
    group = rig.group(fail_fast=True)
    bad, other = rig.running_member(group), rig.running_member(group)
    out = rig.fail(bad)
    assert only(out, Interrupt).task is other
    assert group.state == "cancelling"
    rig.stop(other)
    assert group.state == "failed"
    assert "failed" in rig.failure(other)["reason"]


def test_fail_fast_and_then_a_cancel_is_a_cancel(rig: GroupRig) -> None:
    group = rig.group(fail_fast=True)
    bad, other = rig.running_member(group), rig.running_member(group)
    rig.fail(bad)
    rig.cancel(group.id)
    rig.stop(other)
    assert group.state == "cancelled"


def test_without_fail_fast_the_others_go_on(rig: GroupRig) -> None:
    group = rig.group()
    bad, other = rig.running_member(group), rig.running_member(group)
    assert not [i for i in rig.fail(bad) if isinstance(i, Interrupt)]
    assert other.state is State.RUNNING
    assert group.state == "running"


def test_a_retry_is_no_failure(rig: GroupRig) -> None:
    group = rig.group(fail_fast=True)
    member = rig.running_member(group)
    rig.fail(member, retryable=True)
    rig.close(group)
    rig.start(member)
    rig.finish(member)
    assert group.state == "completed"


def test_a_group_without_a_block_is_over_when_its_members_are(rig: GroupRig) -> None:
    """As those of `%%remote --group` and `map`: not before there was one."""
    group = rig.group(auto=True)
    assert group.state == "running"
    rig.finish(rig.running_member(group))
    assert group.state == "completed"


def test_a_group_without_a_block_is_kept_open_for_a_member_that_is_about_to_come(rig: GroupRig) -> None:
    """Or the member would find it over, and run outside of it."""
    group = rig.group(auto=True)
    first = rig.running_member(group)
    rig.event(GroupKept(group.id, True))
    rig.finish(first)
    assert group.state == "running"
    second = rig.running_member(group)
    rig.event(GroupKept(group.id, False))
    assert group.state == "running"
    rig.finish(second)
    assert (group.state, group.submitted) == ("completed", 2)


@pytest.mark.parametrize("how", ["released", "gone"])
def test_a_group_that_nobody_has_any_more_is_closed(rig: GroupRig, how: str) -> None:
    """Its members go on, and nothing of it stays."""
    group = rig.group(owner=5)
    member = rig.running_member(group, owner=5)
    rig.event(Released(5, [group.id]) if how == "released" else ClientGone(5))
    assert member.state is State.RUNNING
    assert group.closed
    rig.finish(member)
    assert rig.scheduler.groups == {}
    assert group.id not in rig.scheduler.objects


def test_a_killed_parent_s_late_child_counts_and_never_runs(rig: GroupRig) -> None:
    """It was on its way when the parent was killed."""
    group = rig.group()
    parent = rig.running_member(group)
    rig.cancel(parent, force=True)
    assert parent.lease is not None
    child = rig.submit(parent=parent.id, owner=2)
    assert child.state is State.CANCELLED
    rig.die(parent.lease, parent, ours=True)
    rig.close(group)
    assert group.state == "completed"  # it was its members that were cancelled, not the group
    assert group.counts == {State.CANCELLED: 2}
    assert not [i for i in rig.told(Run) if child in i.tasks]


# -- delays, children of what ran out of time, and stories ----------------------------------------------------------


def test_a_delay_between_attempts_grows_and_ends_with_a_cancel(rig: GroupRig) -> None:
    """`retry_delay`, then `retry_backoff` times as long; meanwhile it is pending and holds no slot."""
    task = rig.running(retry_delay=1.0, retry_backoff=3.0)
    for pause in (1.0, 3.0, 9.0):
        rig.fail(task, retryable=True)
        assert (task.state, task.lease) == (State.PENDING, None)
        assert rig.scheduler.next_timer() == rig.now + pause
        if pause == 9.0:
            break
        rig.at(pause)
        assert task.lease is not None
        rig.start(task)
    rig.cancel(task)
    assert task.state is State.CANCELLED
    assert rig.scheduler.next_timer() is None


def test_max_retries_of_minus_one_has_no_end(rig: GroupRig) -> None:
    task = rig.running(max_retries=-1)
    for _ in range(50):
        rig.fail(task, retryable=True)
        rig.start(task)
    assert task.attempt == 50


@pytest.mark.parametrize("cause", ["timeout", "memory"])
def test_a_timeout_and_a_memory_limit_reach_the_children(rig: GroupRig, cause: str) -> None:
    """As a recursive cancel does: what ran out of time must not go on in its children."""
    parent = rig.running(timeout=5.0, memory=1000)
    child = rig.submit(parent=parent.id, owner=2)
    rig.start(child)
    if cause == "timeout":
        out = rig.at(5.0)
        assert {i.task for i in out if isinstance(i, Interrupt)} == {parent, child}
    else:
        out = rig.event(TooMuchMemory(parent.id, 2000))
        assert {i.task for i in out if isinstance(i, Kill)} == {parent, child}
    assert child.cancel is not None
    assert child.cancel.source == "parent"


def test_a_story_tells_each_transition(rig: GroupRig) -> None:
    """With time, source and reason, in order."""
    task = rig.running(watched=True, retry_delay=2.0)
    rig.now += 1
    rig.fail(task, retryable=True)
    rig.at(2.0)
    rig.now += 1
    rig.start(task)
    rig.now += 1
    rig.cancel(task, grace=1.0, reason="enough")
    rig.at(1.0)
    rig.at(TERMINATE_GRACE)
    assert task.lease is not None
    rig.die(task.lease, task, ours=True)
    story = rig.scheduler.story(task.id)
    assert story is not None
    assert [(round(c.at - task.submitted_at), c.step, c.state) for c in story] == [
        (0, "submitted", "pending"),
        (0, "started", "running"),
        (1, "retried", "pending"),
        (4, "started", "running"),
        (5, "asked", "cancelling"),
        (6, "terminate", "cancelling"),
        (7, "kill", "cancelling"),
        (7, "killed", "cancelled"),
    ]
    assert (story[4].source, story[4].reason) == ("user", "enough")


def test_a_plain_task_s_story_is_made_when_somebody_asks(rig: GroupRig) -> None:
    """A hot loop pays nothing for it."""
    task = rig.running()
    rig.finish(task)
    assert task.story is None
    assert [c.step for c in rig.scheduler.story(task.id) or ()] == ["submitted", "started", "returned"]


def test_a_story_is_bounded(rig: GroupRig) -> None:
    """The first chapters and the last ones stay."""
    task = rig.running()
    for _ in range(200):
        rig.cancel(task)
    rig.stop(task)
    story = rig.scheduler.story(task.id)
    assert story is not None
    assert len(story) < 60
    assert story[0].step == "submitted"
    assert story[-1].state == "cancelled"


def test_a_skipped_member_of_a_cancelled_group_is_cancelled(rig: GroupRig) -> None:
    """The worker looked at the ring in time; without a cancel such a task would be given again."""
    group = rig.group()
    member = rig.member(group)
    member.cancel = Cancel("group", "", rig.now, None)
    rig.finish(member, Kind.INTERRUPTED, flags=Flag.SKIPPED, log2=0)
    assert member.state is State.CANCELLED

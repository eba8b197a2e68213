"""What a client concludes when the store no longer has what it acknowledged."""

from __future__ import annotations

from aspenfs.acknowledged import Acknowledged, Loss, ServerProcess

FIRST = ServerProcess(b"1", 100)


def restarted(at_revision: int) -> ServerProcess:
    return ServerProcess(b"2", at_revision)


def known() -> Acknowledged:
    """Return what a client knows after its commits 150 and 200."""
    acknowledged = Acknowledged()
    assert acknowledged.met(FIRST) is None
    for revision in (150, 200):
        assert acknowledged.committed(FIRST, revision) is None
    return acknowledged


def test_another_connection_to_the_same_process_tells_nothing() -> None:
    acknowledged = known()
    assert acknowledged.met(FIRST) is None
    assert acknowledged.take_loss() is None


def test_a_process_that_found_all_commits_has_lost_none() -> None:
    for found in (200, 201):
        acknowledged = known()
        assert acknowledged.met(restarted(found)) is None
        assert not acknowledged.is_given_twice(200)


def test_a_process_that_found_less_has_lost_commits_and_that_is_told_once() -> None:
    acknowledged = known()
    loss = Loss(kept_revision=180, lost_revision=200)
    assert acknowledged.met(restarted(180)) == loss
    assert acknowledged.losses == 1
    assert acknowledged.take_loss() == loss
    assert acknowledged.take_loss() is None
    assert acknowledged.met(ServerProcess(b"3", 185)) is None, "nothing was committed since"


def test_losses_that_nobody_was_told_of_add_up() -> None:
    acknowledged = known()
    acknowledged.met(restarted(180))
    acknowledged.committed(restarted(180), 190)
    acknowledged.met(ServerProcess(b"3", 170))
    assert acknowledged.take_loss() == Loss(170, 200)
    assert acknowledged.losses == 2


def test_an_answer_of_the_process_before_may_come_late() -> None:
    acknowledged = known()
    assert acknowledged.met(restarted(300)) is None
    assert acknowledged.committed(FIRST, 300) is None
    assert acknowledged.committed(FIRST, 301) == Loss(300, 301)


def test_a_revision_that_was_only_seen_is_no_loss_of_ours() -> None:
    acknowledged = known()
    acknowledged.seen(FIRST, 250)
    assert acknowledged.met(restarted(200)) is None
    assert acknowledged.losses == 0


def test_revisions_that_are_given_a_second_time_are_known() -> None:
    acknowledged = known()
    assert not acknowledged.is_given_twice(200)
    acknowledged.seen(FIRST, 250)
    acknowledged.met(restarted(220))
    assert [acknowledged.is_given_twice(each) for each in (220, 221, 250, 251)] == [
        False,
        True,
        True,
        False,
    ]
    acknowledged.seen(restarted(220), 230)
    acknowledged.met(ServerProcess(b"3", 210))
    assert [acknowledged.is_given_twice(each) for each in (210, 211, 250, 251)] == [
        False,
        True,
        True,
        False,
    ]

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from aspenfs.cli.app import aspenfs, run_command
from aspenfs.cli.configure import StoreOptions, chosen_data_dir, configure
from aspenfs.cli.failures import failure_of
from aspenfs.cli.output import (
    displayed,
    escaped,
    print_json,
    readable_bytes,
    readable_time,
    unescaped,
)
from aspenfs.cli.report import Reporter, wait_for_report
from aspenfs.cli.status import command as status_command
from aspenfs.config import (
    TICKET_VARIABLE,
    Carrier,
    ExitCode,
    HostedStore,
    Mounted,
    RemoteStore,
)
from aspenfs.control import NotServedError
from aspenfs.errors import (
    CorruptRecordError,
    FilesystemError,
    FormatVersionError,
    StartupError,
    VolumeError,
)
from aspenfs.mountpoint import Answer, MountEntry
from aspenkv.errors import DataCorruptError, DataDirectoryLockedError, EngineError

MOUNTED = Mounted(volume="v", read_only=False, addresses=["a:1"], ticket_file=None)


@given(st.binary())
def test_escaped_bytes_are_printable_and_lead_back(data: bytes) -> None:
    text = escaped(data)
    assert text.isascii()
    assert text.isprintable()
    assert unescaped(text) == data


@given(st.text(st.characters(exclude_characters="\\", exclude_categories=["Cs"])))
def test_text_without_a_backslash_means_itself(text: str) -> None:
    assert unescaped(text) == text.encode()


def test_a_backslash_that_escapes_nothing_stays() -> None:
    assert unescaped(r"a\qb\x4") == rb"a\qb\x4"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"/plain/\xc3\xa4", "/plain/ä"),
        (b"/a\xffb", r"/a\xffb"),
        (b"/a\nb\x1b[31m\x7f", r"/a\x0ab\x1b[31m\x7f"),
        (b"/a\xc2\x9bb", r"/a\x9bb"),
    ],
)
def test_a_path_for_the_screen_is_one_harmless_line(raw: bytes, shown: str) -> None:
    assert displayed(os.fsdecode(raw)) == shown


def test_json_carries_bytes_and_odd_paths(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"path": "/\udcff", b"\0": [b"\\", (1, None)], "n": 1.5})
    assert json.loads(capsys.readouterr().out) == {
        "path": r"/\xff",
        r"\x00": [r"\\", [1, None]],
        "n": 1.5,
    }


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2**60, "1024.0 PiB")],
)
def test_sizes_are_readable(size: int, shown: str) -> None:
    assert readable_bytes(size) == shown


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (StartupError("line", ExitCode.BUSY), ExitCode.BUSY),
        (FormatVersionError(b"k", 2, 1), ExitCode.DATA_NEWER_FORMAT),
        (CorruptRecordError(b"k", "why"), ExitCode.DATA_DAMAGED),
        (DataCorruptError("line"), ExitCode.DATA_DAMAGED),
        (DataDirectoryLockedError("line"), ExitCode.DATA_LOCKED),
        (VolumeError("line"), ExitCode.DATA_MISSING),
        (NotServedError("line"), ExitCode.NOT_MOUNTED),
        (EngineError("line"), ExitCode.FAILURE),
        (FilesystemError(5), ExitCode.FAILURE),
        (OSError(28, "No space left on device"), ExitCode.FAILURE),
    ],
)
def test_each_error_has_its_exit_code(error: Exception, exit_code: ExitCode) -> None:
    failure = failure_of(error)
    assert (failure.exit_code, failure.is_bug) == (exit_code, False)
    assert failure.line == str(error)
    assert failure_of(ExceptionGroup("nursery", [ExceptionGroup("inner", [error])])) == failure


def test_among_several_errors_the_bug_counts_most() -> None:
    group = ExceptionGroup("nursery", [StartupError("line"), ZeroDivisionError("oops")])
    failure = failure_of(group)
    assert failure.is_bug
    assert failure.exit_code == ExitCode.INTERNAL
    assert "ZeroDivisionError: oops" in failure.line


def failing_command(error: BaseException) -> click.Command:
    @click.command("failing")
    def failing() -> None:
        raise error

    return failing


def test_a_failure_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    command = failing_command(StartupError("no such\nthing", ExitCode.BUSY))
    assert run_command(command, []) == ExitCode.BUSY
    assert capsys.readouterr().err == "aspenfs: no such\\x0athing\n"


def test_a_bug_shows_its_traceback_on_request_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASPENFS_DEBUG", raising=False)
    assert run_command(failing_command(ZeroDivisionError()), []) == ExitCode.INTERNAL
    assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setenv("ASPENFS_DEBUG", "1")
    assert run_command(failing_command(ZeroDivisionError()), []) == ExitCode.INTERNAL
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_said_in_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(failing_command(KeyboardInterrupt()), []) == ExitCode.FAILURE
    assert "interrupted" in capsys.readouterr().err


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(aspenfs, ["nonsense"]) == ExitCode.USAGE
    assert "nonsense" in capsys.readouterr().err


def test_an_option_beats_the_same_word_in_o(tmp_path: Path) -> None:
    config = configure(
        tmp_path,
        options=["data=/a,volume=a,log_file=/a,rw"],
        store=StoreOptions(data_dir=tmp_path / "b"),
        volume="b",
        log_file=Path("b"),
        read_only=True,
    )
    assert (config.state_dir, config.volume, config.read_only) == (tmp_path / "b", "b", True)
    assert config.log_file == Path.cwd() / "b"


def test_words_in_o_beat_the_defaults(tmp_path: Path) -> None:
    config = configure(tmp_path, options=[f"data={tmp_path}/a,volume=a,log_file=/a,ro,nonempty"])
    assert (config.state_dir, config.volume, config.read_only) == (tmp_path / "a", "a", True)
    assert (config.log_file, config.nonempty) == (Path("/a"), True)


@pytest.mark.parametrize("euid", [0, 1000])
def test_root_lets_others_in_and_a_user_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, euid: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    config = configure(tmp_path, options=[])
    assert config.allow_other is (euid == 0)
    assert ("dev" in config.kernel_options) is (euid == 0)
    assert configure(tmp_path, options=["allow_other"]).allow_other
    if euid:
        assert config.state_dir == tmp_path / ".local/share/aspenfs"


def test_a_ticket_names_a_remote_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "t"
    by_option = configure(tmp_path, options=[], store=StoreOptions(ticket_file=file)).store
    by_word = configure(tmp_path, options=[f"ticket={file}"]).store
    monkeypatch.setenv(TICKET_VARIABLE, "aspen1.x")
    by_environment = configure(tmp_path, options=[]).store
    for store, ticket_file in ((by_option, file), (by_word, file), (by_environment, None)):
        assert isinstance(store, RemoteStore)
        assert store.ticket_file == ticket_file
        assert tmp_path.name in store.state_dir.name
    # Who names a data directory means that one, whatever the environment says.
    named = configure(tmp_path, options=[f"data={tmp_path}/d"]).store
    assert isinstance(named, HostedStore)


def test_where_to_listen(tmp_path: Path) -> None:
    def store(*options: str, listen: str | None = None, advertise: tuple[str, ...] = ()) -> object:
        words = [f"data={tmp_path}/d", *options]
        choice = StoreOptions(listen=listen, advertise=advertise)
        return configure(tmp_path, options=words, store=choice).store

    data_dir = tmp_path / "d"
    assert store() == HostedStore(data_dir=data_dir, listen="127.0.0.1:0")
    assert store(listen="none") == HostedStore(data_dir=data_dir, listen=None)
    assert store("ro") == HostedStore(data_dir=data_dir, listen=None)
    assert store("ro", listen="a:1") == HostedStore(data_dir=data_dir, listen="a:1")
    assert store("listen=[::1]:7400,carrier=quic", advertise=("nas:1",)) == HostedStore(
        data_dir=data_dir, listen="[::1]:7400", advertise=("nas:1",), carrier=Carrier.QUIC
    )


@pytest.mark.parametrize(
    ("options", "choice", "said"),
    [
        (["data=/d,ticket=/t"], StoreOptions(), "--data and --ticket exclude each other"),
        (["ticket=/t,listen=a:1"], StoreOptions(), "leave them out"),
        (["ticket=/t"], StoreOptions(advertise=("a:1",)), "leave them out"),
        (["ticket=/t,carrier=direct"], StoreOptions(), "leave them out"),
        (["data=/d,listen=nowhere"], StoreOptions(), "--listen: 'nowhere' is no address"),
        (["data=/d"], StoreOptions(advertise=("x",)), "--advertise: 'x' is no address"),
        (["data=/d,timeout=soon"], StoreOptions(), "timeout soon is not possible"),
        (["data=/d,timeout=0.1"], StoreOptions(), "1 to 600 seconds"),
    ],
)
def test_options_that_contradict_are_refused(
    tmp_path: Path, options: list[str], choice: StoreOptions, said: str
) -> None:
    with pytest.raises(StartupError, match=said) as caught:
        configure(tmp_path, options=options, store=choice)
    assert caught.value.exit_code == ExitCode.USAGE


def test_the_timeout_of_a_call(tmp_path: Path) -> None:
    assert configure(tmp_path, options=["data=/d"]).timeout_s == 30
    assert configure(tmp_path, options=["data=/d,timeout=5"]).timeout_s == 5
    assert configure(tmp_path, options=["data=/d,timeout=5"], timeout=7.5).timeout_s == 7.5


def test_a_data_directory_must_have_a_name_for_the_store() -> None:
    with pytest.raises(StartupError, match="UTF-8") as caught:
        chosen_data_dir(Path("/\udcff"))
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.fixture
def pipe() -> tuple[int, int]:
    return os.pipe()


def test_a_report_of_success(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    reporter = Reporter(writing)
    reporter.ready(MOUNTED)
    reporter.failed(failure_of(StartupError("too late")))
    assert wait_for_report(reading, 10) == MOUNTED
    os.close(reading)


def test_a_report_of_failure(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    Reporter(writing).failed(failure_of(StartupError("why: /\udcff", ExitCode.BUSY)))
    with pytest.raises(StartupError, match="why: /\udcff") as caught:
        wait_for_report(reading, 10)
    assert caught.value.exit_code == ExitCode.BUSY
    os.close(reading)


def test_no_report_and_no_end(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    with pytest.raises(TimeoutError):
        wait_for_report(reading, 0.01)
    os.close(writing)
    assert wait_for_report(reading, 10) is None
    os.close(reading)


def test_nobody_listens_to_a_report(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.close(reading)
    Reporter(writing).ready(MOUNTED)
    Reporter(None).ready(MOUNTED)


def test_without_a_mount_status_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aspenfs.cli.status.read_mounts", list)
    done = CliRunner().invoke(status_command, [])
    assert (done.exit_code, done.output) == (0, "nothing is mounted\n")
    assert CliRunner().invoke(status_command, ["--json"]).output == "[]\n"


def test_status_does_not_wait_for_a_mount_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = MountEntry(1, (0, 1), Path("/m"), "fuse.aspenfs", "aspenfs:/d")
    monkeypatch.setattr("aspenfs.cli.status.read_mounts", lambda: [entry])
    monkeypatch.setattr("aspenfs.cli.status.probe", lambda *_: Answer.SILENT)
    done = CliRunner().invoke(status_command, [])
    assert "does not answer: 'aspenfs umount --force'" in done.output


def test_times_beyond_the_calendar_are_shown_in_seconds() -> None:
    assert readable_time(2**70) == "@1180591620717.411303424"
    assert readable_time(-1) == "1969-12-31 23:59:59.999999999 UTC"

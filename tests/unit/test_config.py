from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenfs.config import (
    Carrier,
    ExitCode,
    HostedStore,
    MountConfig,
    MountOptions,
    RemoteStore,
    aspenfs_version,
    data_dir_of_fstab,
    default_data_dir,
    parse_options,
    privileged_options,
    source_of,
    state_dir_of,
    state_dir_of_mount,
)
from aspenfs.errors import StartupError
from aspenfs.types import CoherenceLevel

PATHS = st.binary(min_size=1, max_size=60).filter(lambda name: b"\0" not in name and name != b"/")


def usage_error(*texts: str) -> str:
    with pytest.raises(StartupError) as caught:
        parse_options(texts)
    assert caught.value.exit_code == ExitCode.USAGE
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_option_says_nothing() -> None:
    assert parse_options(()) == MountOptions()


def test_what_fstab_says_to_others_is_swallowed() -> None:
    words = (
        "defaults,_netdev,nofail,auto,noauto,user,user=joe,users,owner,group,relatime,strictatime,"
        "x-systemd.automount,x-systemd.device-timeout=5s,X-mount.mkdir,comment=mine,lazytime,"
        "default_permissions,uhelper=udisks2"
    )
    assert parse_options([words]) == MountOptions()


def test_each_word_of_our_own_has_its_effect() -> None:
    options = parse_options(
        [
            "ro,allow_other",
            "nonempty,local_locks,data=/srv/d,volume=v,log_file=/tmp/l",
            "ticket=/t,listen=none,carrier=quic,coherence=strict,timeout=9",
        ]
    )
    assert options == MountOptions(
        ticket_file=Path("/t"),
        listen="none",
        carrier=Carrier.QUIC,
        coherence=CoherenceLevel.STRICT,
        timeout="9",
        read_only=True,
        allow_other=True,
        nonempty=True,
        local_locks=True,
        data_dir=Path("/srv/d"),
        volume="v",
        log_file=Path("/tmp/l"),
    )


def test_the_later_word_wins() -> None:
    assert parse_options(["ro,rw"]).read_only is False
    assert parse_options(["rw", "ro"]).read_only is True
    assert parse_options(["nodev,dev,suid,nosuid"]).kernel_options == ("dev", "nosuid")
    assert parse_options(["data=/a,data=/b"]).data_dir == Path("/b")


def test_words_for_the_kernel_are_kept_once() -> None:
    options = parse_options(["noatime,nodev,noatime,noexec"])
    assert options.kernel_options == ("nodev", "noatime", "noexec")


def test_a_comma_in_a_value_is_escaped() -> None:
    assert parse_options([r"data=/a\,b\\c,ro"]) == MountOptions(
        read_only=True, data_dir=Path(r"/a,b\c")
    )


def test_an_unknown_word_is_named_with_its_neighbour() -> None:
    assert "'noatim': did you mean 'noatime'?" in usage_error("noatim")
    assert "--help" in usage_error("quux_zzzz")


def test_a_value_where_none_belongs_is_an_error() -> None:
    usage_error("ro=1")
    usage_error("noatime=1")


@pytest.mark.parametrize("word", ["data", "data=", "volume"])
def test_a_missing_value_is_an_error(word: str) -> None:
    assert "needs a value" in usage_error(word)


def test_remount_is_refused_with_the_cure() -> None:
    assert "unmount and mount again" in usage_error("remount,ro")


def test_sloppy_leaves_out_unknown_words() -> None:
    assert parse_options(["what=ever,ro"], sloppy=True) == MountOptions(read_only=True)


def test_the_data_of_root_is_in_var_lib() -> None:
    assert default_data_dir({"HOME": "/root"}, privileged=True) == Path("/var/lib/aspenfs")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/home/joe"}, "/home/joe/.local/share/aspenfs"),
        ({"HOME": "/home/joe", "XDG_DATA_HOME": "/data"}, "/data/aspenfs"),
        ({"HOME": "/home/joe", "XDG_DATA_HOME": "relative"}, "/home/joe/.local/share/aspenfs"),
        ({"HOME": "/home/joe", "XDG_DATA_HOME": ""}, "/home/joe/.local/share/aspenfs"),
    ],
)
def test_the_data_of_a_user_is_at_home(environ: dict[str, str], expected: str) -> None:
    assert default_data_dir(environ, privileged=False) == Path(expected)


def test_without_a_home_the_cure_is_data() -> None:
    with pytest.raises(StartupError, match="--data"):
        default_data_dir({}, privileged=False)


def test_root_may_use_devices_and_set_uid_programs_unless_told_otherwise() -> None:
    assert privileged_options(("noatime",)) == ("noatime", "dev", "suid")
    assert privileged_options(("nodev", "suid")) == ("nodev", "suid")


@given(PATHS)
def test_a_source_is_plain_ascii_and_leads_back_to_its_directory(name: bytes) -> None:
    data_dir = Path(os.fsdecode(b"/" + name))
    source = source_of(data_dir)
    assert source.isascii()
    assert not set(source) & set(", \\\n\t")
    assert state_dir_of(source) == data_dir


@pytest.mark.parametrize("source", ["/dev/sda1", "aspenfs", "aspenfs:relative", "aspenfs:"])
def test_other_sources_name_no_data_directory(source: str) -> None:
    assert state_dir_of(source) is None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("aspenfs", None),
        ("none", None),
        ("/srv/data", Path("/srv/data")),
        ("aspenfs:/srv/a%20b", Path("/srv/a b")),
    ],
)
def test_the_source_of_an_fstab_line(source: str, expected: Path | None) -> None:
    assert data_dir_of_fstab(source) == expected


def test_another_source_is_refused() -> None:
    with pytest.raises(StartupError, match="absolute path"):
        data_dir_of_fstab("sda1")


CONFIG = MountConfig(
    mountpoint=Path("/mnt/a b"),
    store=HostedStore(
        data_dir=Path("/srv/d"),
        listen=None,
        advertise=("nas:7400", "[::1]:7400"),
        carrier=Carrier.QUIC,
    ),
    timeout_s=5.0,
    volume="v",
    read_only=True,
    allow_other=True,
    nonempty=True,
    local_locks=True,
    log_file=Path("/var/log/a"),
    kernel_options=("noatime", "nodev"),
)


def test_the_arguments_give_the_same_options_again() -> None:
    arguments = CONFIG.arguments()
    words = parse_options([arguments[arguments.index("-o") + 1]])
    assert (words.read_only, words.allow_other, words.nonempty) == (True, True, True)
    assert words.local_locks
    assert words.kernel_options == CONFIG.kernel_options
    assert words.carrier is Carrier.QUIC
    assert "--data=/srv/d" in arguments
    assert "--listen=none" in arguments
    assert [word for word in arguments if word.startswith("--advertise")] == [
        "--advertise=nas:7400",
        "--advertise=[::1]:7400",
    ]
    assert "--timeout=5.0" in arguments
    assert "--volume=v" in arguments
    assert arguments[arguments.index("--log-file") + 1] == "/var/log/a"
    assert arguments[-2:] == ["--", "/mnt/a b"]


def test_libfuse_gets_every_option() -> None:
    assert CONFIG.fuse_options() == {
        "fsname=aspenfs:/srv/d",
        "subtype=aspenfs",
        "default_permissions",
        "noatime",
        "nodev",
        "allow_other",
        "ro",
    }


def test_the_least_that_libfuse_gets() -> None:
    config = MountConfig(mountpoint=Path("/m"), store=HostedStore(data_dir=Path("/d")))
    assert config.fuse_options() == {
        "fsname=aspenfs:/d",
        "subtype=aspenfs",
        "default_permissions",
    }
    assert config.default_log_file == Path("/d/aspenfs.log")
    assert config.arguments() == [
        "--data=/d",
        "--listen=127.0.0.1:0",
        "--coherence=default",
        "--timeout=30.0",
        "-o",
        "rw,carrier=direct",
        "--",
        "/m",
    ]


def test_a_mount_of_a_remote_store_has_a_state_directory() -> None:
    config = MountConfig(
        mountpoint=Path("/m"),
        store=RemoteStore(ticket_file=Path("/t"), state_dir=Path("/state/m")),
    )
    assert "fsname=aspenfs:/state/m" in config.fuse_options()
    assert config.default_log_file == Path("/state/m/aspenfs.log")
    assert config.arguments() == [
        "--ticket=/t",
        "--coherence=default",
        "--timeout=30.0",
        "-o",
        "rw",
        "--",
        "/m",
    ]


def test_whose_calls_go_over_a_network() -> None:
    hosted, remote = Path("/d"), RemoteStore(ticket_file=None, state_dir=Path("/s"))
    for store, expected in (
        (HostedStore(data_dir=hosted), False),
        (HostedStore(data_dir=hosted, carrier=Carrier.QUIC), True),
        (remote, True),
    ):
        assert MountConfig(mountpoint=Path("/m"), store=store).is_networked is expected


def test_a_ticket_in_the_environment_is_no_argument() -> None:
    store = RemoteStore(ticket_file=None, state_dir=Path("/state/m"))
    assert store.arguments() == []


def test_each_mountpoint_has_a_state_directory_of_its_own() -> None:
    home = {"HOME": "/home/joe"}
    one = state_dir_of_mount(Path("/mnt/team"), {}, privileged=True)
    assert one.parent == Path("/var/lib/aspenfs-mounts")
    assert one.name.startswith("mnt-team-")
    paths = [Path("/mnt/a-b"), Path("/mnt/a/b"), Path(os.fsdecode(b"/mnt/\xff")), Path("/")]
    places = {state_dir_of_mount(path, home, privileged=False) for path in paths}
    assert len(places) == len(paths)
    assert {place.parent for place in places} == {Path("/home/joe/.local/state/aspenfs")}
    longest = state_dir_of_mount(Path("/" + "x" * 4000), home, privileged=False)
    assert len(longest.name) < 255


def test_an_unknown_carrier_is_refused() -> None:
    assert "direct, quic" in usage_error("carrier=pigeon")


def test_an_unknown_level_of_coherence_is_refused() -> None:
    assert "default, strict, ttl" in usage_error("coherence=eventual")


def test_exit_codes_are_distinct_and_fit_a_shell() -> None:
    codes = [code.value for code in ExitCode.__members__.values()]
    assert len(codes) == len(set(codes))
    assert all(0 <= code < 126 for code in codes)


def test_the_version_is_known_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert aspenfs_version()
    monkeypatch.setattr("sys.meta_path", [])
    assert aspenfs_version() == "0+source"

"""From a command's options to the one frozen configuration of a mount."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from aspenfs.config import (
    DEFAULT_LISTEN,
    DEFAULT_TIMEOUT_S,
    NO_ADDRESS,
    TICKET_VARIABLE,
    Carrier,
    ExitCode,
    HostedStore,
    MountConfig,
    MountOptions,
    RemoteStore,
    default_data_dir,
    parse_options,
    privileged_options,
    state_dir_of_mount,
)
from aspenfs.errors import StartupError, VolumeError
from aspenfs.keys import Keys
from aspenfs.limits import TIMEOUT_S_MAX, TIMEOUT_S_MIN
from aspenfs.mountpoint import resolve
from aspenfs.types import CoherenceLevel
from aspenkv.tickets import parse_endpoint


class StoreOptions(NamedTuple):
    """What the options of a command say of the store, as they were written; None: nothing."""

    data_dir: Path | None = None
    ticket_file: Path | None = None
    listen: str | None = None
    advertise: tuple[str, ...] = ()


_NOTHING_CHOSEN: Final = StoreOptions()


def configure(
    mountpoint: Path,
    *,
    options: Sequence[str],
    store: StoreOptions = _NOTHING_CHOSEN,
    volume: str | None = None,
    coherence: CoherenceLevel | None = None,
    timeout: float | None = None,
    log_file: Path | None = None,
    read_only: bool = False,
    sloppy: bool = False,
) -> MountConfig:
    """Return what to mount. An option of its own beats the same word in ``-o``.

    Args:
        mountpoint: as the user wrote it.
        options: the values of ``-o``.
        store: ``--data``, ``--ticket``, ``--listen`` and ``--advertise``.
        volume: ``--volume``.
        coherence: ``--coherence``.
        timeout: ``--timeout``, in seconds.
        log_file: ``--log-file``.
        read_only: ``--read-only``.
        sloppy: leave out unknown words of ``-o``.

    Raises:
        StartupError: an option is wrong.
    """
    words = parse_options(options, sloppy=sloppy)
    privileged = os.geteuid() == 0
    log_path = log_file or words.log_file
    volume = volume or words.volume
    place = resolve(mountpoint)
    is_read_only = read_only or bool(words.read_only)
    return MountConfig(
        mountpoint=place,
        store=_chosen_store(place, store, words, read_only=is_read_only),
        volume=None if volume is None else _checked_volume(volume),
        read_only=is_read_only,
        allow_other=privileged or words.allow_other,
        nonempty=words.nonempty,
        local_locks=words.local_locks,
        coherence=coherence or words.coherence or CoherenceLevel.DEFAULT,
        timeout_s=_timeout_s(timeout, words.timeout),
        log_file=None if log_path is None else log_path.absolute(),
        kernel_options=(
            privileged_options(words.kernel_options) if privileged else words.kernel_options
        ),
    )


def _chosen_store(
    mountpoint: Path, choice: StoreOptions, words: MountOptions, *, read_only: bool
) -> HostedStore | RemoteStore:
    """Return the store to mount: by ticket if there is one and no data directory was named.

    A read-only mount serves nobody unless told where: others could change what it shows.
    """
    data_dir = choice.data_dir or words.data_dir
    ticket_file = choice.ticket_file or words.ticket_file
    listen = choice.listen or words.listen
    if ticket_file is None and (data_dir is not None or TICKET_VARIABLE not in os.environ):
        return HostedStore(
            data_dir=chosen_data_dir(data_dir),
            listen=_checked_listen(listen or (NO_ADDRESS if read_only else DEFAULT_LISTEN)),
            advertise=tuple(_checked_address("--advertise", each) for each in choice.advertise),
            carrier=words.carrier or Carrier.DIRECT,
        )
    if data_dir is not None:
        raise StartupError("--data and --ticket exclude each other: give one", ExitCode.USAGE)
    if listen is not None or choice.advertise or words.carrier is Carrier.DIRECT:
        raise StartupError(
            "--listen, --advertise and -o carrier are for the mount that hosts the data: "
            "leave them out where a ticket names the server",
            ExitCode.USAGE,
        )
    return RemoteStore(
        ticket_file=None if ticket_file is None else ticket_file.absolute(),
        state_dir=state_dir_of_mount(mountpoint, os.environ, privileged=os.geteuid() == 0),
    )


def _checked_listen(text: str) -> str | None:
    return None if text == NO_ADDRESS else _checked_address("--listen", text)


def _checked_address(option: str, text: str) -> str:
    try:
        parse_endpoint(text)
    except ValueError as error:
        raise StartupError(f"{option}: {error}", ExitCode.USAGE) from None
    return text


def _timeout_s(option: float | None, word: str | None) -> float:
    said = str(option) if option is not None else word
    if said is None:
        return DEFAULT_TIMEOUT_S
    try:
        timeout_s = float(said)
    except ValueError:
        timeout_s = 0.0
    if not TIMEOUT_S_MIN <= timeout_s <= TIMEOUT_S_MAX:
        raise StartupError(
            f"timeout {said} is not possible: use {TIMEOUT_S_MIN:g} to {TIMEOUT_S_MAX:g} seconds",
            ExitCode.USAGE,
        )
    return timeout_s


def chosen_data_dir(data_dir: Path | None) -> Path:
    """Return the data directory that was named, or this user's own; absolute, free of links.

    Raises:
        StartupError: its name is none that the store can open.
    """
    if data_dir is None:
        data_dir = default_data_dir(os.environ, privileged=os.geteuid() == 0)
    data_dir = data_dir.resolve()
    try:
        str(data_dir).encode()
    except UnicodeEncodeError:
        raise StartupError(
            f"data directory {data_dir} cannot be opened by the store, which knows UTF-8 names "
            f"only: name another with --data DIR",
            ExitCode.USAGE,
        ) from None
    return data_dir


def _checked_volume(volume: str) -> str:
    try:
        return Keys(volume).volume
    except VolumeError as error:
        raise StartupError(str(error), ExitCode.USAGE) from None

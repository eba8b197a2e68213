"""From a command's options to the one frozen configuration of a mount."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from aspenfs.config import (
    DEFAULT_VOLUME,
    ExitCode,
    MountConfig,
    default_data_dir,
    parse_options,
    privileged_options,
)
from aspenfs.errors import StartupError, VolumeError
from aspenfs.keys import Keys
from aspenfs.mountpoint import resolve


def configure(
    mountpoint: Path,
    *,
    options: Sequence[str],
    data_dir: Path | None = None,
    volume: str | None = None,
    log_file: Path | None = None,
    read_only: bool = False,
    sloppy: bool = False,
) -> MountConfig:
    """Return what to mount. An option of its own beats the same word in ``-o``.

    Args:
        mountpoint: as the user wrote it.
        options: the values of ``-o``.
        data_dir: ``--data``.
        volume: ``--volume``.
        log_file: ``--log-file``.
        read_only: ``--read-only``.
        sloppy: leave out unknown words of ``-o``.

    Raises:
        StartupError: an option is wrong.
    """
    words = parse_options(options, sloppy=sloppy)
    privileged = os.geteuid() == 0
    log_path = log_file or words.log_file
    return MountConfig(
        mountpoint=resolve(mountpoint),
        data_dir=chosen_data_dir(data_dir or words.data_dir),
        volume=_checked_volume(volume or words.volume or DEFAULT_VOLUME),
        read_only=read_only or bool(words.read_only),
        allow_other=privileged or words.allow_other,
        nonempty=words.nonempty,
        log_file=None if log_path is None else log_path.absolute(),
        kernel_options=(
            privileged_options(words.kernel_options) if privileged else words.kernel_options
        ),
    )


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

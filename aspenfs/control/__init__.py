"""The control socket of a mount: a local door for the command line, for the same user and root."""

from aspenfs.control.address import SOCKET_NAME, serving_process
from aspenfs.control.changes import change_handlers, open_remote_changes
from aspenfs.control.client import ControlCallError, ControlClient, NotServedError, connect
from aspenfs.control.frames import ControlProtocolError
from aspenfs.control.inspection import InodeDescription, describe_inode
from aspenfs.control.keyvalue import RemoteKeyValue, key_value_handlers
from aspenfs.control.server import Handlers, StreamHandler, open_control, serve_control

__all__ = [
    "SOCKET_NAME",
    "ControlCallError",
    "ControlClient",
    "ControlProtocolError",
    "Handlers",
    "InodeDescription",
    "NotServedError",
    "RemoteKeyValue",
    "StreamHandler",
    "change_handlers",
    "connect",
    "describe_inode",
    "key_value_handlers",
    "open_control",
    "open_remote_changes",
    "serve_control",
    "serving_process",
]

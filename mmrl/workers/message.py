"""Messages of workers: JSON, in which bytes travel as base64."""

import base64
import json
from typing import Any

BYTES = "bytes in base64"  # the one key of an object that stands for bytes
LARGEST = 64 << 20  # bytes of one message from a worker


def pack(message: dict[str, Any]) -> bytes:
    """A message as JSON. Raises TypeError for what is neither JSON, nor bytes, nor a numpy scalar."""
    return json.dumps(message, default=_plain).encode()


def unpack(message: bytes) -> dict[str, Any]:
    """The message of these bytes of `pack`; tuples come back as lists. Raises ValueError for other bytes."""
    value = json.loads(message, object_hook=_with_bytes)
    if not isinstance(value, dict):
        raise ValueError("a worker's message is a JSON object")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {BYTES: base64.b64encode(value).decode()}
    if hasattr(value, "item"):  # a number of numpy's, which is not imported for this
        return value.item()
    raise TypeError(f"a worker cannot send a {type(value).__name__}; return JSON values or bytes")


def _with_bytes(value: dict[str, Any]) -> Any:
    if value.keys() == {BYTES} and isinstance(value[BYTES], str):
        return base64.b64decode(value[BYTES])
    return value

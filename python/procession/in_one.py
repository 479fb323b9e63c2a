"""Pickles whose buffers are apart, made into ordinary ones."""

import io
import pickletools

__all__ = ["in_one"]


def in_one(pickle, buffers):
    """The pickle with its buffers in it, as `bytes`.

    Nothing is unpickled: who receives bytes may have reasons not to, and may not have the classes.
    """
    operations = [(operation.name, start) for operation, _, start in pickletools.genops(io.BytesIO(pickle))]
    ends = [start for _, start in operations[1:]] + [len(pickle)]
    followers = [name for name, _ in operations[1:]] + [None]
    buffers = iter(buffers)
    parts = []
    for (name, start), end, follower in zip(operations, ends, followers, strict=True):
        if name == "NEXT_BUFFER":
            buffer = next(buffers, None)
            if buffer is None:
                raise ValueError("the message is damaged: it has fewer buffers than it says")
            # As pickles without a `buffer_callback` have it: BINBYTES8, BYTEARRAY8.
            parts += (b"\x8e" if follower == "READONLY_BUFFER" else b"\x96", len(buffer).to_bytes(8, "little"), buffer)
        elif name not in ("READONLY_BUFFER", "FRAME"):
            # Frames would have other lengths. None are needed.
            parts.append(pickle[start:end])
    return b"".join(parts)

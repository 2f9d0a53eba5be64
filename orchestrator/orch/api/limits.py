"""How large a request may be, how long it may take to arrive, and how many at once: every limit of the API's door."""

CONNECTIONS_MAX = 512
"""More are told 503."""
BACKLOG = 128
HEAD_BYTES_MAX = 16 << 10
"""The request line and the headers, together."""
HEAD_LIMIT_S = 10.0
"""From the connection, or from the first byte of a further request on it, to the end of the headers."""
BODY_BYTES_MAX = 8 << 20
"""A request other than an upload."""
BODY_LIMIT_S = 60.0
"""The whole body of a request other than an upload."""
CODE_BYTES_MAX = 2 << 30
"""A shipped workdir; packing refuses sooner."""
PAUSE_LIMIT_S = 30.0
"""Between two pieces of an upload."""
KEEP_ALIVE_S = 60
"""A connection between two requests."""
WRITE_LIMIT_S = 60.0
"""An answer of which the other side takes nothing."""

"""What no answer may show, whoever gives it and however it is read."""

from __future__ import annotations

import re

LEAKS = re.compile(
    r"traceback|sqlalchemy|sqlite|psycopg|\bselect \b|\binsert \b|\.py\b|\.cc\b|\.pb\b|site-packages|amqp:|"
    r"postgresql|/tmp/|/home/|/usr/|exception|0x[0-9a-f]{8}|tok_visa|Bearer e|envoy|upstream|127\.0\.0\.1:|"
    r"cluster|RBAC|Jwt",
    re.IGNORECASE,
)
"""Stacks, files, SQL, secrets, addresses, and what the edge is made of."""

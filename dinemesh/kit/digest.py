"""A name for contents: the same for the same contents, in whichever process it is made."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping


def digest(values: Mapping[str, str | int]) -> str:
    """43 characters (A-Z a-z 0-9 - _) that name these values, whatever their order.

    Values that are empty or 0 count as left out, as in proto3: a field that a later version adds changes no
    name until it is used, so that two versions side by side agree.
    """
    kept = {key: value for key, value in values.items() if value}
    packed = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    # The whole of SHA-256: nobody finds two contents of one name, even if they choose both.
    return base64.urlsafe_b64encode(hashlib.sha256(packed.encode()).digest()).decode().rstrip("=")

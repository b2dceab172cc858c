"""A path that exists, asked with a verb that it does not take, says which ones it takes."""

from __future__ import annotations

import re
from collections import defaultdict

import httpx
import pytest

from tests.edge.rpcs import RPCS
from tests.edge.stand_in import StandIn
from tests.support.json_refusals import json_refusal

VERBS = ("GET", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS")


def paths() -> dict[str, set[str]]:
    """The verbs of each path, out of the contracts."""
    found: dict[str, set[str]] = defaultdict(set)
    for rpc in RPCS.values():
        if rpc.verb:
            found[re.sub(r"{\w+}", "some-id", rpc.template)].add(rpc.verb)
    return found


@pytest.mark.parametrize("path", sorted(paths()))
async def test_a_wrong_verb_is_told_the_right_ones(
    alone: httpx.AsyncClient, stand_in: StandIn, path: str
) -> None:
    allowed = paths()[path]
    headers = {"authorization": f"Bearer {stand_in.keys.token('alice', 'customer')}"}
    for verb in VERBS:
        answer = await alone.request(verb, path, headers=headers)
        if verb in allowed:
            assert answer.status_code == 200, (verb, answer.text)
            continue
        assert answer.status_code == 405, (verb, answer.text)
        assert set(answer.headers["allow"].split(", ")) == allowed
        if verb != "HEAD":
            assert json_refusal(answer).reason == "VERB_NOT_ALLOWED"
    assert {one.method for one in stand_in.seen} <= {rpc.path for rpc in RPCS.values() if rpc.verb in allowed}

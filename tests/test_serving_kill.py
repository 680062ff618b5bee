"""A server that is killed while files come in: what it acknowledged is there, whole and once."""

import kill_serving
import pytest


@pytest.mark.long
def test_nothing_acknowledged_is_lost_and_nothing_is_half_there(tmp_path):
    counts = kill_serving.run(tmp_path / "server", rounds=5)
    assert counts["kills"] == 5
    assert counts["uploads acknowledged"] > 5
    assert counts["additions acknowledged"] > 2
    assert counts["cut off"] > 0, "no client was cut off: the kills came when nothing happened"

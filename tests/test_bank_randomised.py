"""`randomised_bank` for a while: what it finds in older releases it must not find in this one."""

from __future__ import annotations

import pytest
import randomised_bank

from memory3.bank import view


@pytest.mark.parametrize("seed", [7, 11, 23])
def test_every_read_is_of_the_version_that_the_reader_has(seed):
    faults, done = randomised_bank.steps(seed, 40)
    assert not faults
    assert done["checked"] > 5


def test_memory_and_text_are_of_one_version_beside_a_writer():
    faults, done = randomised_bank.threads(0, 4.0)
    assert not faults
    assert min(done["pairs"], done["versions"]) > 3


def test_it_finds_a_cache_that_forgets_versions(monkeypatch):
    class Forgetful(view.BankView):
        def memories(self, reference_ids, *, use_cache=True, device=None):
            for id_ in reference_ids:
                old = self._cache.get(id_)
                if old is not None:
                    self._cache.put((self.snapshot.id, id_, "cpu"), old, 166)
            found = super().memories(reference_ids, use_cache=use_cache)
            for id_, memory in zip(reference_ids, found, strict=True):
                self._cache.put(id_, memory, 166)
            return found

    from memory3.bank import bank

    monkeypatch.setattr(bank, "BankView", Forgetful)
    assert any(randomised_bank.threads(seed, 4.0)[0] for seed in range(3))

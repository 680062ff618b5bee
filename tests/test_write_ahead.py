"""Writing with several threads that encode: the same bank, in the same order, and nothing left behind when it ends early."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from bank_writer import HashingWriter, contents, documents, expected, open_bank
from tiny import tiny_model, tiny_tokenizer

from memory3.bank.write import pace
from memory3.bank.write.workers import Workers
from memory3.config import MemoryConfig
from memory3.encode.stopping import Stopped, check_stopped, stoppable
from memory3.errors import InputError
from memory3.llm import Memory3
from memory3.types import Document


class Several(HashingWriter):
    encoders = 3


@pytest.fixture
def small_commits(monkeypatch):
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 6)


def many():
    """Documents of all sizes, one of them too large for a commit, one empty."""
    large = Document("large", " ".join(f"w{n}" for n in range(61)))
    return [*documents(5), large, Document("empty", ""), *documents(11)[5:]]


def left_over():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("memory3-write")]


@pytest.mark.parametrize("lazy", [False, True])
def test_the_same_bank_as_of_one_thread(tmp_path, small_commits, lazy):
    told = {}
    for kind in (HashingWriter, Several):
        path = tmp_path / kind.__name__
        with open_bank(path, kind()) as bank:
            progress = told[kind] = []
            report = bank.write(many(), lazy=lazy, progress=progress.append)
            assert report.references == sum(1 for d in many() for _ in kind().split(d))
            assert bank.verify().ok
            assert contents(bank) == expected(many())
            assert bank.write(many(), lazy=lazy).written == 0
    one, several = told.values()
    assert one[-1].references == several[-1].references
    assert one[-1].documents == several[-1].documents
    assert [step.references for step in several] == sorted(step.references for step in several)
    assert left_over() == []


def test_references_are_encoded_at_the_same_time(tmp_path):
    meet = threading.Barrier(2, timeout=60)

    class Meets(Several):
        def encode(self, references):
            assert torch.get_num_threads() == 1
            meet.wait()
            return super().encode(references)

    with open_bank(tmp_path / "bank", Meets()) as bank:
        bank.write([Document("d", " ".join(f"w{n}" for n in range(16)))])  # batches of 3 and of 1
        assert len(bank) == 4


def test_documents_are_read_by_the_caller_while_others_are_encoded(tmp_path, small_commits):
    reading, caller = threading.Event(), threading.get_ident()
    sixes = [Document(f"d{number}", " ".join(f"w{number}{n}" for n in range(24))) for number in range(5)]

    class Waits(Several):
        def encode(self, references):
            assert threading.get_ident() != caller
            assert reading.wait(60)
            return super().encode(references)

    def given():
        assert threading.get_ident() == caller
        yield from sixes[:2]
        reading.set()  # two commits' worth of references, of which none is encoded yet
        yield from sixes[2:]

    with open_bank(tmp_path / "bank", Waits()) as bank:
        bank.write(given())
        assert contents(bank) == expected(sixes)


def test_an_error_of_a_thread_is_the_writes(tmp_path, small_commits):
    class Fails(Several):
        def encode(self, references):
            if any("bad" in reference.text for reference in references):
                raise InputError("this text is bad")
            return super().encode(references)

    good, after = documents(11), [Document(f"after{n}", "some words more and more") for n in range(7)]
    with open_bank(tmp_path / "bank", Fails()) as bank:
        with pytest.raises(InputError, match="this text is bad"):
            bank.write([*good, Document("bad", "a bad text " * 9), *after])
        bank.refresh()
        kept = contents(bank)
        assert kept.items() <= expected(good).items()
        assert {row[0].document_id for row in kept.values()} >= {d.id for d in good[:3]}
        assert bank.verify().ok
        bank.write([*good, *after])
        assert contents(bank) == expected([*good, *after])
    assert left_over() == []


def test_what_was_whole_is_committed_before_a_document_that_cannot_be_read(tmp_path, small_commits):
    def given():
        yield from documents(11)
        raise OSError("the drive is gone")

    found = []
    for kind in (HashingWriter, Several):
        with open_bank(tmp_path / kind.__name__, kind()) as bank:
            with pytest.raises(OSError, match="the drive is gone"):
                bank.write(given())
            bank.refresh()
            found.append({row[0].document_id for row in contents(bank).values()})
            assert bank.verify().ok
    assert len(found[1]) > 3
    assert found[1] <= {d.id for d in documents(11)}


def test_an_interruption_ends_what_is_being_encoded(tmp_path, small_commits):
    begun = threading.Event()

    class Long(Several):
        def encode(self, references):
            begun.set()
            for _ in range(6000):
                check_stopped()  # as the model does it in each layer
                time.sleep(0.01)
            return super().encode(references)

    def given():
        yield from documents(2)
        assert begun.wait(60)
        raise KeyboardInterrupt

    with open_bank(tmp_path / "bank", Long()) as bank:
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            bank.write(given())
        assert time.monotonic() - started < 30
        assert left_over() == []
        bank.refresh()
        assert len(bank) == 0
    with open_bank(tmp_path / "bank") as bank:  # the lock is free
        bank.write(documents(9))
        assert contents(bank) == expected(documents(9))


def test_a_pass_ends_between_two_layers():
    m3 = Memory3(tiny_model("llama"), tiny_tokenizer(), MemoryConfig(reference_length=31, dtype="float32"), name="tiny")
    references, stop = list(m3.split(Document("d", "The bridge was built in 1874."))), threading.Event()
    with stoppable(stop):
        (whole,) = m3.encode(references)
        stop.set()
        with pytest.raises(Stopped):
            m3.encode(references)
    assert m3.model.config._attn_implementation == "sdpa"
    (again,) = m3.encode(references)  # who does not ask for it is not stopped
    assert torch.equal(whole.keys, again.keys)


def test_other_threads_keep_their_number_of_torchs():
    before, found = torch.get_num_threads(), []
    with Workers(2) as workers:
        assert workers.submit(torch.get_num_threads)() == 1
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert torch.get_num_threads() == before
    assert found == [before]

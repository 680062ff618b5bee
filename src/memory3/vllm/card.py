"""What vLLM's processes must know of a model to read memories with it: a card, kept beside the weights that vLLM loads.

    make_folder(m3, folder)     weights with their adapter merged, tokenizer, and the card
    Card.read(folder)           in the scheduler and in each worker; loads no weights

So that no process of vLLM holds the model twice. A card stands for its model where a bank asks who reads (`MemoryWriter`),
and refuses to write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from memory3.config import MemoryConfig
from memory3.errors import ModelError
from memory3.files import read_json, write_atomically
from memory3.llm import Memory3
from memory3.models.active import feed
from memory3.models.frame import Frame
from memory3.types import Document, Memory, MemoryShape, Reference

__all__ = ["Card", "make_folder"]

#: In a folder of its own: vLLM takes every file of tensors beside the weights for weights.
_NAME = Path("memory3", "card.json")
_TENSORS = Path("memory3", "card.safetensors")
#: Of cards; another is not read.
_FORMAT = 1


@dataclass(frozen=True)
class Card:
    """A model as its readers inside vLLM know it.

    Attributes:
        folder: where it lies, with the weights.
        name: of the model.
        config: how its memories are written and read.
        shape: of its memories.
        fingerprint: of the model and the settings that write.
        frame: the pieces of its prompts.
        positions: that the model has.
        full_layers: those that see the whole context.
        num_layers: of the model.
        angles: ``[r/2]`` RoPE angles per position, of every layer.
        prefix: keys and values ``[H, b, d]`` of the prefix, for every layer.
        embeddings: name of the tensor of the token embeddings in the weights.
        batch_size: references that would be encoded at once.
    """

    folder: Path
    name: str
    config: MemoryConfig
    shape: MemoryShape
    fingerprint: str
    frame: Frame
    positions: int
    num_layers: int
    full_layers: tuple[int, ...]
    angles: tuple[torch.Tensor, ...]
    prefix: list[tuple[torch.Tensor, torch.Tensor]]
    embeddings: str
    batch_size: int = 1

    @classmethod
    def read(cls, folder: str | Path) -> Card:
        """The card in a model's folder.

        Raises:
            ModelError: there is none, or none of this release.
        """
        folder = Path(folder)
        remedy = "make the folder with memory3.vllm.card.make_folder, and give it to vLLM as its model"
        if not (folder / _NAME).is_file():
            raise ModelError(f"{folder} has no {_NAME}, by which vLLM reads memories: {remedy}")
        try:
            said = read_json(folder / _NAME)
            if said["format"] != _FORMAT:
                raise ValueError(f"its format is {said['format']!r:.20}, not {_FORMAT}")
            tensors = load_file(folder / _TENSORS)
            frame = dict(said["frame"])
            pieces = {name: tuple(value) for name, value in frame.items() if name not in ("scaffold", "special")}
            return cls(
                folder=folder,
                name=str(said["name"]),
                config=MemoryConfig.from_dict(said["config"]),
                shape=MemoryShape.from_dict(said["shape"]),
                fingerprint=str(said["fingerprint"]),
                frame=Frame(**pieces, scaffold=tuple(map(tuple, frame["scaffold"])), special=frozenset(frame["special"])),
                positions=int(said["positions"]),
                num_layers=int(said["num_layers"]),
                full_layers=tuple(said["full_layers"]),
                angles=tuple(tensors[f"angles.{n}"] for n in said["angles"]),
                prefix=list(zip(tensors["prefix.keys"], tensors["prefix.values"], strict=True)),
                embeddings=str(said["embeddings"]),
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelError(f"{folder / _NAME} cannot be read ({error}): {remedy}") from error

    @staticmethod
    def text(folder: str | Path) -> str:
        """What a model's folder has for a card, whatever it says; empty where there is none."""
        path = Path(folder) / _NAME
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    # ---- who reads: what a bank asks for (memory3.bank.MemoryWriter) -------------------------------------------------

    @cached_property
    def token_vectors(self) -> torch.Tensor:
        """``[V, e]``: the model's embeddings, from which codecs predict. Read from the weights when first asked for."""
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                if self.embeddings in file.keys():  # noqa: SIM118 (no mapping)
                    return file.get_tensor(self.embeddings)
        raise ModelError(f"no weights in {self.folder} have the tensor {self.embeddings}: is the folder complete?")

    def split(self, document: Document) -> Iterator[Reference]:
        """Refused: documents are not written here."""
        raise ModelError(_READS_ONLY)

    def encode(self, references: Sequence[Reference]) -> list[Memory]:
        """Refused: memories are not written here."""
        raise ModelError(_READS_ONLY)


_READS_ONLY = (
    "inside vLLM memories are read and not written, and references that a bank keeps as text alone (lazy) cannot be "
    "encoded: `memory3 rebuild` the bank, or write it with `memory3 write`"
)


def make_folder(m3: Memory3, folder: str | Path) -> Path:
    """A folder that vLLM loads: the weights of a model as they are, its adapter among them, its tokenizer and its card.

    Args:
        m3: the model.
        folder: to be made. One that has the card of this model and these settings is left as it is.

    Returns:
        the folder.

    Raises:
        ModelError: the folder cannot be written.
    """
    folder = Path(folder)
    card = _card(m3)
    if (folder / _NAME).is_file() and read_json(folder / _NAME) == card:
        return folder
    model: Any = m3.model
    geometry = m3.geometry
    distinct = list({id(one): one for one in geometry.angles}.values())
    tensors = {f"angles.{n}": one.detach().clone() for n, one in enumerate(distinct)}
    keys, values = zip(*m3.encoder.prefix, strict=True)
    tensors |= {"prefix.keys": torch.stack(keys), "prefix.values": torch.stack(values)}
    try:
        (folder / _NAME).parent.mkdir(parents=True, exist_ok=True)
        (folder / _NAME).unlink(missing_ok=True)  # a folder that is half made is none
        model.save_pretrained(folder)
        m3.tokenizer.save_pretrained(folder)
        save_file({name: one.cpu().contiguous() for name, one in tensors.items()}, folder / _TENSORS)
        write_atomically(folder / _NAME, json.dumps(card, indent=1) + "\n")
    except OSError as error:
        raise ModelError(f"{folder} cannot be written ({error}): give another folder, or make room") from error
    return folder


def _weights(model: torch.nn.Module) -> str:
    """32 hex digits of all weights, those above the memory layers too: a fingerprint does not look at them."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        feed(digest, tensor)
    return digest.hexdigest()


def _card(m3: Memory3) -> dict[str, Any]:
    """What is written, as JSON gives it back."""
    geometry, frame = m3.geometry, asdict(m3.frame)
    distinct = list({id(one): None for one in geometry.angles})
    vectors = m3.model.get_input_embeddings().weight
    names = [name for name, tensor in m3.model.named_parameters() if tensor is vectors]
    said = {
        "format": _FORMAT,
        "name": m3.name,
        "weights": _weights(m3.model),
        "dtype": str(m3.model.dtype),
        "config": m3.config.to_dict(),
        "shape": m3.shape.to_dict(),
        "fingerprint": m3.fingerprint,
        "frame": {name: sorted(value) if isinstance(value, frozenset) else value for name, value in frame.items()},
        "positions": geometry.max_positions,
        "num_layers": geometry.num_layers,
        "full_layers": geometry.full_layers,
        "angles": [distinct.index(id(one)) for one in geometry.angles],
        "embeddings": names[0],
    }
    found: dict[str, Any] = json.loads(json.dumps(said))
    return found

"""Text to token ids and back: bytes, a tokenizer.json, or a Hugging Face name."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import FederationError
from photon_core.hashing import sha256_bytes
from schemas.server_errors import told

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "[EOS]", "[SEP]")
CHOICES = "'bytes', a path to a tokenizer.json, or a Hugging Face name such as EleutherAI/gpt-neox-20b"


class Tokenizer(ABC):
    """The interface of a tokenizer.

    Attributes:
        size: one more than the largest id; the model's vocab_size must be at least that.
        eot: id of the end-of-text token, which follows every document and occurs nowhere else.
        sha256: hash of the tokenizer's definition: equal hashes give equal ids.
    """

    size: int
    eot: int
    sha256: str

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, never with special tokens, even if the text spells them."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD."""


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, and end-of-text as id 256."""

    def __init__(self) -> None:
        self.size = 257
        self.eot = 256
        self.sha256 = sha256_bytes(b"photon bytes: 256 bytes, end-of-text 256")

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class FileTokenizer(Tokenizer):
    """A Hugging Face tokenizer, from the bytes of its tokenizer.json.

    Attributes:
        content: bytes of the tokenizer.json.
        end_of_text: token with the id `eot`.
    """

    def __init__(self, content: bytes, where: str) -> None:
        """Read a tokenizer.json.

        Args:
            content: bytes of the file; their hash is the tokenizer's.
            where: label of the file for errors.

        Raises:
            FederationError: the file is not a tokenizer, or has none of the known end-of-text tokens.
        """
        from tokenizers import Tokenizer as HuggingFace

        try:
            inner: Any = HuggingFace.from_buffer(content)
        except Exception as error:  # the library raises bare Exception
            raise FederationError(
                f"tokenizer: {where} is not a tokenizer.json: {error}; write {CHOICES}"
            ) from error
        # a tokenizer.json may request truncation, but every token of a document is needed
        inner.no_truncation()
        inner.no_padding()
        # a document that spells a special token must not end itself
        inner.encode_special_tokens = True
        end = next((name for name in END_OF_TEXT if inner.token_to_id(name) is not None), None)
        if end is None:
            raise FederationError(
                f"tokenizer: {where} has no end-of-text token; add one of {', '.join(END_OF_TEXT)} to it"
            )
        self._inner = inner
        self.content, self.end_of_text = content, end
        self.eot = int(inner.token_to_id(end))
        self.size = max(inner.get_vocab(with_added_tokens=True).values()) + 1
        self.sha256 = sha256_bytes(content)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._inner.decode(list(ids), skip_special_tokens=False))


def load_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer that the federation file names.

    Args:
        spec: 'bytes', a path to a tokenizer.json (or its folder), or a Hugging Face name.

    Raises:
        FederationError: there is no such tokenizer; the message lists what can be written.
    """
    if spec == "bytes":
        return ByteTokenizer()
    path = Path(spec).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.is_file():
        return FileTokenizer(path.read_bytes(), str(path))
    # Hugging Face names are 'name' or 'owner/name'; anything else is meant as a path
    if spec.endswith(".json") or spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise FederationError(f"tokenizer: there is no file '{spec}'; write {CHOICES}")
    return FileTokenizer(_download(spec), spec)


def _download(name: str) -> bytes:
    # the file itself, so that a name and a path to the same tokenizer have the same hash
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "tokenizer.json")).read_bytes()
    except Exception as error:  # network, HTTP and cache errors of several libraries
        raise FederationError(
            f"tokenizer: '{name}' is not a file on this machine, and the download from Hugging Face failed "
            f"({told(error)}); write {CHOICES}"
        ) from None

"""Text to token ids, on the operator's side: phones have no tokenizer library.

Responsible for reading a Hugging Face ``tokenizer.json`` and for turning texts into ids, truncated and not padded:
a device pads each micro-batch to its own longest row and makes mask and type ids itself, so only ids travel.

A library that truncates has already tokenised everything: a megabyte of text takes half a second and up to 300 MB in
order to give 256 ids. So of a long text only a beginning is tokenised, and more of it until `SPARE_TOKENS` more than
needed are there. Where a text is cut can only change the tokens next to the cut, so what is kept is what all of the
text would have given.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketgrid.errors import InvalidSpecError, StoreError
from pocketgrid.model.job import TokenizerRef
from pocketgrid.storage.locations import blocks, open_source
from pocketgrid.storage.reasons import Refusal

_FIELD = "spec.input.tokenizer"
_LARGEST_FILE_BYTES = 256 << 20

SHORTEST_BEGINNING = 8192
CHARACTERS_PER_TOKEN = 16
"""A beginning has so many characters for each token that is wanted, four times what languages usually need."""

SPARE_TOKENS = 64
_PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")
"""Names of the padding token in wide use, asked in this order where the tokenizer itself names none."""


class TextTokenizer:
    """A tokenizer with its length limit; thread-safe. Encoding holds the interpreter lock only to hand over texts.

    Attributes:
        pad_token_id: fills rows up to the longest of a micro-batch; never seen by the model, which gets a mask.
        sha256: of the tokenizer's file.
    """

    def __init__(self, ref: TokenizerRef) -> None:
        content = _read(ref)
        self.sha256 = hashlib.sha256(content).hexdigest()
        if ref.sha256 and ref.sha256.lower() != self.sha256:
            raise InvalidSpecError(
                Refusal.DIGEST_MISMATCH,
                f"the tokenizer's SHA-256 is {self.sha256}, not {ref.sha256}",
                field=f"{_FIELD}.sha256",
            )
        # The threads that call us are the parallelism; a pool beneath them would fight them for the same cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Any = Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing narrower
            raise InvalidSpecError(
                Refusal.INVALID_TOKENIZER,
                f"{ref.uri} is not a Hugging Face tokenizer.json: {error}",
                field=f"{_FIELD}.uri",
            ) from error
        special = self._tokenizer.num_special_tokens_to_add(False)
        if ref.max_length <= special:
            # The library would silently not truncate at all.
            raise InvalidSpecError(
                Refusal.INVALID_TOKENIZER,
                f"this tokenizer adds {special} special tokens, so texts can be no shorter than {special + 1}",
                field=f"{_FIELD}.maxLength",
            )
        self.pad_token_id = self._find_pad_token()
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(ref.max_length)
        self._special = special
        self._beginning = max(SHORTEST_BEGINNING, CHARACTERS_PER_TOKEN * ref.max_length)

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Ids of all texts one after the other, and how many each has. Texts must be valid Unicode."""
        long = [index for index, text in enumerate(texts) if len(text) > self._beginning]
        short = list(texts)
        for index in long:
            short[index] = ""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(short)]
        for index in long:
            ids[index] = self._encode_long(texts[index])
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter((i for row in ids for i in row), np.int32, int(lengths.sum()))
        return flat, lengths

    def _encode_long(self, text: str) -> list[int]:
        length = self._beginning
        while True:
            # Between words, if there are any: a word that is cut may fall into more tokens than the whole.
            end = max(text.rfind(blank, length // 2, length) for blank in " \n\t") if length < len(text) else len(text)
            encoding = self._tokenizer.encode_batch_fast([text[: end if end > 0 else length]])[0]
            spare = sum(len(more.ids) - self._special for more in encoding.overflowing)
            if length >= len(text) or spare >= SPARE_TOKENS:
                return list(encoding.ids)
            length *= 4

    def _find_pad_token(self) -> int:
        padding = self._tokenizer.padding
        if padding is not None:
            return int(padding["pad_id"])
        for token in _PAD_TOKENS:
            found = self._tokenizer.token_to_id(token)
            if found is not None:
                return int(found)
        return 0


def _read(ref: TokenizerRef) -> bytes:
    field = f"{_FIELD}.uri"
    source = open_source(ref.uri, field=field)
    try:
        if source.size > _LARGEST_FILE_BYTES:
            raise InvalidSpecError(
                Refusal.INVALID_TOKENIZER, f"{source.name} is too large for a tokenizer.json", field=field
            )
        return b"".join(blocks(source))
    except StoreError as error:
        raise InvalidSpecError(Refusal.UNREADABLE, str(error), field=field) from error
    finally:
        source.close()

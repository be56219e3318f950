"""Why a job or a single item is refused: every CamelCase reason of the reading side, in one place.

A `Refusal` ends up in a condition of the job and never goes away by itself; an `ItemReason` ends up in the error
file beside the key of one row. Users filter and alert on both, so a name, once released, keeps its meaning.
"""

from __future__ import annotations

from typing import Final


class Refusal:
    """Why a job can never run as it is written."""

    # Reaching files
    INVALID_URI: Final = "InvalidURI"
    """Not an absolute path and not a URI."""
    UNSUPPORTED_SCHEME: Final = "UnsupportedScheme"
    """No installed library opens such a URI."""
    NOT_FOUND: Final = "NotFound"
    UNREADABLE: Final = "Unreadable"
    """It is there, but it is no file, or reading it failed."""
    INVALID_DIGEST: Final = "InvalidDigest"
    """What the manifest states is not a SHA-256."""
    DIGEST_MISMATCH: Final = "DigestMismatch"
    """The content is not what the manifest says."""

    # The model
    NOT_AN_ONNX_MODEL: Final = "NotAnOnnxModel"
    EXTERNAL_DATA: Final = "ExternalData"
    """Weights lie in other files; a model travels as one file."""
    UNSUPPORTED_MODEL: Final = "UnsupportedModel"
    """A rank or type that tensors on the wire cannot have."""
    NOT_BATCHED: Final = "NotBatched"
    """The first axis of an input or output is not the batch axis."""
    UNKNOWN_OUTPUT: Final = "UnknownOutput"
    DUPLICATE_OUTPUT: Final = "DuplicateOutput"

    # The data set
    WRONG_FORMAT: Final = "WrongFormat"
    """The content is not of the stated format."""
    EMPTY_DATA_SET: Final = "EmptyDataSet"
    NO_USABLE_ROW: Final = "NoUsableRow"
    """Every one of the first rows would fail."""
    TOO_MANY_FILES: Final = "TooManyFiles"
    DUPLICATE_FILE: Final = "DuplicateFile"
    """A file is named twice, such as by overlapping globs."""
    SCHEMA_DIFFERS: Final = "SchemaDiffers"
    """A column that is needed is not the same in all files."""

    # How the two meet
    UNKNOWN_COLUMN: Final = "UnknownColumn"
    UNKNOWN_INPUT: Final = "UnknownInput"
    UNBOUND_INPUT: Final = "UnboundInput"
    """A model input that nothing feeds."""
    DUPLICATE_BINDING: Final = "DuplicateBinding"
    INVALID_BINDING: Final = "InvalidBinding"
    """Neither columns nor a tokenizer, or both."""
    WRONG_TYPE: Final = "WrongType"
    WRONG_SHAPE: Final = "WrongShape"
    INVALID_KEY: Final = "InvalidKey"
    """A key column that holds neither text nor integers."""
    INVALID_TOKENIZER: Final = "InvalidTokenizer"

    # What comes out
    UNFIT_COMPARATOR: Final = "UnfitComparator"
    """Results of this model cannot be told apart as `spec.verification` asks."""
    INVALID_POSTPROCESS: Final = "InvalidPostprocess"
    OUTPUT_UNWRITABLE: Final = "OutputUnwritable"
    UNSUPPORTED_OUTPUT: Final = "UnsupportedOutput"


class ItemReason:
    """Why one item is not sent to any device."""

    EMPTY_LINE: Final = "EmptyLine"
    INVALID_JSON: Final = "InvalidJSON"
    INVALID_TEXT: Final = "InvalidText"
    """Bytes that are not UTF-8, or a string that cannot be written as UTF-8."""
    MISSING_COLUMN: Final = "MissingColumn"
    NULL_VALUE: Final = "NullValue"
    WRONG_TYPE: Final = "WrongType"
    WRONG_SHAPE: Final = "WrongShape"
    OUT_OF_RANGE: Final = "OutOfRange"
    NO_TOKENS: Final = "NoTokens"
    INVALID_CSV: Final = "InvalidCSV"
    WRONG_CELL_COUNT: Final = "WrongCellCount"
    """A CSV row with more or fewer cells than there are columns."""
    INVALID_NUMBER: Final = "InvalidNumber"
    """A CSV cell that is not the number or truth value that the model wants."""
    UNREADABLE_FILE: Final = "UnreadableFile"
    FILE_TOO_LARGE: Final = "FileTooLarge"
    INVALID_IMAGE: Final = "InvalidImage"
    """Bytes that are no image, or a broken or truncated one."""
    IMAGE_TOO_LARGE: Final = "ImageTooLarge"
    UNSUPPORTED_IMAGE: Final = "UnsupportedImage"
    """An image that cannot become 8-bit pixels without guessing."""
    TOO_SHORT: Final = "TooShort"
    """Fewer bytes than the job says are needed."""
    KEY_MISSING: Final = "KeyMissing"
    KEY_WRONG_TYPE: Final = "KeyWrongType"

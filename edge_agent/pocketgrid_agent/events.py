"""What can happen to an agent, and what it then has to do: the alphabet of `machine`.

Events come in, effects go out; both are frozen data, so that any history can be written down, replayed and compared.
Payloads (input tensors) pass through as opaque objects: no rule depends on what is in them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pocketgrid_agent.policy import Verdict

Token = bytes
"""Names one attempt; made by the gateway, echoed with the result."""


@dataclass(frozen=True, slots=True)
class Affine:
    """(x * scale - mean) / std in float32, before the cast; see `Affine` in agent.proto.

    Attributes:
        axis: of an item, from 0, along which `scale`, `mean` and `std` differ where they have more than one value.
        scale, mean, std: at least one value each; std is never 0.
    """

    axis: int = 0
    scale: tuple[float, ...] = (1.0,)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, slots=True)
class Binding:
    """How one model input is filled; see `TensorBinding` in agent.proto."""

    input: str
    source: int
    dtype: str
    affine: Affine | None = None
    item_shape: tuple[int, ...] = ()


MASK_SOURCE = -1
ZEROS_SOURCE = -2

MEAN_POOL = "MeanPool"
NORMALIZE = "Normalize"
ARGMAX = "Argmax"
BATCH_FIRST = "BatchFirst"


@dataclass(frozen=True, slots=True)
class Output:
    """How one result tensor is made: operations are names of `postprocess`, applied in order."""

    name: str
    operations: tuple[str, ...] = ()
    ragged: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """All there is to know of a job, apart from its items.

    Attributes:
        cache_key: the model's file is encrypted with it on this device; empty: it lies there as it is.
    """

    job: str
    model: str
    model_bytes: int
    bindings: tuple[Binding, ...]
    outputs: tuple[Output, ...]
    fixed_batch: int = 0
    pad_token_id: int = 0
    cache_key: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One shard handed to this device.

    Attributes:
        items: how many items it has.
        input_bytes: size of its input tensors; counts against the credits.
        payload: the input tensors.
    """

    job: str
    shard: int
    token: Token
    items: int
    input_bytes: int
    payload: object = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Ready:
    """A model is loaded, and this fast: items per second over all slots at `micro_batch` items per run."""

    items_per_second: float
    micro_batch: int
    fetch_ms: int = 0
    load_ms: int = 0


@dataclass(frozen=True, slots=True)
class NotReady:
    """A job cannot be worked on here, and why (CamelCase reason, sentence)."""

    reason: str
    message: str


# ---- events ----


@dataclass(frozen=True, slots=True)
class Welcomed:
    """A stream was opened and the gateway answered."""


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The stream is gone."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """The gateway wants this device to get ready for a job."""

    order: Order


@dataclass(frozen=True, slots=True)
class Prepared:
    """Getting ready for `order` ended, well or not."""

    order: Order
    outcome: Ready | NotReady


@dataclass(frozen=True, slots=True)
class Leased:
    """Work arrived; attempts are to be begun in this order."""

    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class Revoked:
    """The gateway takes back what has not been begun."""

    job: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Stop and forget; no tokens mean the whole job."""

    job: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """An attempt was computed. `failed` says that the whole attempt failed, so there are no outputs to reuse."""

    token: Token
    result_bytes: int
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Abandoned:
    """Computing an attempt stopped early, as it was told to."""

    token: Token


@dataclass(frozen=True, slots=True)
class Journaled:
    """These results will survive a crash (or cannot be made to, and should go out all the more)."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """The gateway has no more use for these results, whatever became of them."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """Finish what is begun and give back the rest. `leave` ends the process afterwards, else only the session."""

    reason: str
    leave: bool


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """What the owner's policy lets this device do from now on."""

    verdict: Verdict


Event = (
    Welcomed
    | LinkLost
    | Ordered
    | Prepared
    | Leased
    | Revoked
    | Cancelled
    | Finished
    | Abandoned
    | Journaled
    | Settled
    | DrainRequested
    | PolicyChanged
)


# ---- effects ----


@dataclass(frozen=True, slots=True)
class Prepare:
    """Fetch, load, warm up and measure; answered by Prepared."""

    order: Order


@dataclass(frozen=True, slots=True)
class Dismiss:
    """A job is over as far as this device is concerned: stop preparing for it and let go of its model."""

    job: str


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the gateway whether this device is ready for a job."""

    order: Order
    outcome: Ready | NotReady


@dataclass(frozen=True, slots=True)
class Compute:
    """Begin an attempt; answered by Finished or Abandoned."""

    attempt: Attempt
    order: Order


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop computing these at the next micro-batch; each is answered by Abandoned or Finished."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """Put the fresh result of this attempt into the journal; answered by Journaled."""

    token: Token


@dataclass(frozen=True, slots=True)
class Reissue:
    """Put the outputs of the finished attempt `old` into the journal again as result of `new`; as Keep."""

    old: Token
    new: Token


@dataclass(frozen=True, slots=True)
class Deliver:
    """Send these results, all of one job."""

    job: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove these results from the journal."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Tell the gateway that these were not begun and never will be."""

    job: str
    tokens: tuple[Token, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Restrain:
    """Tell the gateway how far this device is held back."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Postpone:
    """Stop getting ready for a job; what was fetched of its model stays, and Prepare may come again."""

    job: str


@dataclass(frozen=True, slots=True)
class AnnounceDraining:
    """Ask the gateway for no more leases."""

    reason: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the stream, then dial again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Everything is done and delivered: close the stream and end the process."""


Effect = (
    Prepare
    | Dismiss
    | Report
    | Compute
    | Abandon
    | Keep
    | Reissue
    | Deliver
    | Forget
    | GiveBack
    | Restrain
    | Postpone
    | AnnounceDraining
    | Disconnect
    | Leave
)

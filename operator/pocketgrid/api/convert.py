"""From a manifest to the grid's own words: `JobSpec` and `HardwareClass`.

The only way in, for the controller and for local mode alike. Reading files is `manifest`'s task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from pocketgrid.api.v1alpha1 import decode as manifest_decode
from pocketgrid.api.v1alpha1 import hardware_class, inference_job, tolerance_profile
from pocketgrid.api.v1alpha1 import verification as manifest_verification
from pocketgrid.api.v1alpha1.conditions import RefusalReason
from pocketgrid.api.v1alpha1.meta import API_VERSION, Body, Kind, ObjectMeta
from pocketgrid.api.validation import Violation, parse
from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.decoding import BytesDecode, ImageDecode
from pocketgrid.model.device import HardwareClass
from pocketgrid.model.ids import JobUid, ModelDigest
from pocketgrid.model.job import (
    ColumnBinding,
    CsvOptions,
    InputRef,
    JobSpec,
    Limits,
    ModelRef,
    OutputRef,
    Placement,
    PostprocessStep,
    Sharding,
    TokenizerRef,
)
from pocketgrid.model.money import Budget, PriceList, read_money
from pocketgrid.model.numerics import Deviation, ToleranceProfile
from pocketgrid.model.selectors import LabelSelector, Requirement, Toleration
from pocketgrid.model.trust import Comparator, ComparatorKind, DataClass, TrustTier, Verification

AnyKind = TypeVar("AnyKind", bound=Kind)

URI_FIELDS = (("model", "uri"), ("input", "tokenizer", "uri"), ("output", "uri"))
"""Where a spec names single files and folders."""

DATA_FIELDS = (("input", "uri"), ("input", "uris"))
"""Where a spec names what may also be a glob, or a folder by its slash at the end."""

_TIERS = {"Public": TrustTier.PUBLIC, "Vetted": TrustTier.VETTED, "Owned": TrustTier.OWNED}
_DATA_CLASSES = {
    "Public": DataClass.PUBLIC,
    "Internal": DataClass.INTERNAL,
    "Confidential": DataClass.CONFIDENTIAL,
}
_WILDCARDS = {"%2A": "*", "%3F": "?", "%5B": "[", "%5D": "]"}


def to_job_spec(
    body: Body, *, base: Path | None = None, uid: str | None = None, created: float | None = None
) -> JobSpec:
    """Read an InferenceJob.

    Args:
        body: the whole object. Its status is not looked at.
        base: local mode: folder that ``file:data.jsonl`` and plain paths are relative to. None: such paths are
            refused, because the operator has no folder that a user could mean.
        uid: local mode: identity of the job, if the object has none.
        created: local mode: seconds since the Unix epoch, if the object has no creation time.

    Raises:
        InvalidSpecError: the object is not acceptable; names the first problem and counts the others.
    """
    if base is not None:
        body = resolve_uris(body, base)
    job = _read(inference_job.InferenceJob, body)
    identity = job.metadata.uid or uid
    if not identity:
        raise InvalidSpecError(RefusalReason.MISSING_FIELD, "is required", field="metadata.uid")
    spec = job.spec
    return JobSpec(
        uid=JobUid(identity),
        namespace=job.metadata.namespace,
        name=job.metadata.name,
        model=ModelRef(spec.model.uri, ModelDigest(spec.model.sha256), spec.model.outputs),
        input=_input(spec.input),
        output=_output(spec.output),
        placement=_placement(spec.placement),
        sharding=Sharding(spec.sharding.items_per_shard or 0, float(spec.sharding.lease_seconds)),
        limits=Limits(
            backoff_limit_per_shard=spec.backoff_limit_per_shard,
            max_failed_items=spec.max_failed_items,
            active_deadline_s=spec.active_deadline_seconds or 0,
        ),
        verification=_verification(spec.verification),
        budget=Budget(read_money(spec.budget.limit), spec.budget.action) if spec.budget is not None else None,
        priority=spec.priority,
        suspend=spec.suspend,
        created=_created(job.metadata, created),
    )


def ttl_seconds(body: Body) -> int | None:
    """How long a finished InferenceJob's object is kept, or None for ever. For a body that was read before."""
    value = body.get("spec", {}).get("ttlSecondsAfterFinished")
    return value if isinstance(value, int) else None


def to_hardware_class(body: Body) -> HardwareClass:
    """Read a HardwareClass.

    Raises:
        InvalidSpecError: the object is not acceptable; names the first problem and counts the others.
    """
    kind = _read(hardware_class.HardwareClass, body)
    selector = kind.spec.node_selector
    return HardwareClass(
        name=kind.metadata.name,
        selector=LabelSelector(
            match_labels=dict(selector.match_labels),
            expressions=tuple(Requirement(r.key, r.operator, r.values) for r in selector.match_expressions),
        ),
        price=_price(kind.spec.price) if kind.spec.price is not None else None,
        numerics=kind.spec.numerics_class or "",
    )


def to_tolerance_profile(body: Body) -> ToleranceProfile:
    """Read a ToleranceProfile.

    Raises:
        InvalidSpecError: the object is not acceptable; names the first problem and counts the others.
    """
    spec = _read(tolerance_profile.ToleranceProfile, body).spec
    pairs = {
        (pair.one, pair.other): Deviation(
            pair.items,
            pair.identical,
            float(pair.absolute) if pair.absolute is not None else math.inf,
            float(pair.cosine) if pair.cosine is not None else math.inf,
        )
        for pair in spec.pairs
    }
    return ToleranceProfile(ModelDigest(spec.model_sha256), pairs)


def build_tolerance_profile(profile: ToleranceProfile, name: str, measured: str) -> Body:
    """The object that `to_tolerance_profile` reads as `profile`, with tolerances rounded up.

    Args:
        name: of the object.
        measured: when, as RFC 3339.
    """
    pairs = []
    for (one, other), found in sorted(profile.pairs.items()):
        pair: dict[str, Any] = {"one": one, "other": other, "items": found.items, "identical": found.identical}
        for key, value in (("absolute", found.absolute), ("cosine", found.cosine)):
            if math.isfinite(value):
                pair[key] = _rounded_up(value)
        pairs.append(pair)
    return {
        "apiVersion": API_VERSION,
        "kind": tolerance_profile.ToleranceProfile.resource.kind,
        "metadata": {"name": name},
        "spec": {"modelSha256": profile.model, "measuredTime": measured, "pairs": pairs},
    }


def _rounded_up(value: float) -> str:
    """A decimal text of at least `value`, with three digits that count."""
    exact = Decimal(value)
    if not exact:
        return "0"
    # 28 places are what the schema has room for.
    step = Decimal(1).scaleb(max(min(exact.adjusted() - 2, 0), -28))
    return f"{exact.quantize(step, ROUND_CEILING):f}"


def tier_of(body: Body) -> TrustTier:
    """Whose an EdgeNode says its device is. What is not there or not understood counts as anybody's."""
    spec = body.get("spec")
    tier = spec.get("tier") if isinstance(spec, Mapping) else None
    return _TIERS.get(tier, TrustTier.PUBLIC) if isinstance(tier, str) else TrustTier.PUBLIC


def refusal(violations: list[Violation]) -> InvalidSpecError:
    """The error that tells of `violations`, which must not be empty."""
    first = violations[0]
    if first.reason == RefusalReason.MISSING_FIELD:
        # A misspelt field is missing as well, and more to the point.
        first = next((v for v in violations if v.reason == RefusalReason.UNKNOWN_FIELD), first)
    others = len(violations) - 1
    more = f" (and {others} more problem{'s' if others > 1 else ''})" if others else ""
    return InvalidSpecError(first.reason, first.message + more, field=first.field)


def resolve_uris(body: Body, base: Path) -> Body:
    """Copy an InferenceJob with relative places made absolute, as seen from the folder `base`.

    ``file:name`` and a text without scheme are paths; everything else stays as it is.

    Raises:
        InvalidSpecError: a path is none that a file system could have.
    """
    spec = body.get("spec")
    if not isinstance(spec, Mapping):
        return body
    resolved: Any = spec
    for steps in URI_FIELDS:
        resolved = _resolve(resolved, steps, lambda uri: _absolute(uri, base))
    for steps in DATA_FIELDS:
        resolved = _resolve(resolved, steps, lambda uri: _absolute_pattern(uri, base))
    return {**body, "spec": resolved}


def _resolve(spec: Any, steps: tuple[str, ...], change: Callable[[str], str]) -> Any:
    try:
        return _replace(spec, steps, change)
    except (OSError, ValueError) as error:  # zero bytes, halves of characters, names that are too long, loops of links
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidSpecError(
            RefusalReason.INVALID_FIELD, f"cannot be a path: {reason}", field=".".join(("spec", *steps))
        ) from error


def _replace(value: Any, steps: tuple[str, ...], change: Callable[[str], str]) -> Any:
    if not steps:
        if isinstance(value, list | tuple):
            return [_replace(entry, (), change) for entry in value]
        return change(value) if isinstance(value, str) and value else value
    name, *rest = steps
    if not isinstance(value, Mapping) or name not in value:
        return value
    return {**value, name: _replace(value[name], tuple(rest), change)}


def _absolute(uri: str, base: Path) -> str:
    if "://" in uri:
        return uri
    # A URI is percent-encoded and a path is not; both may name a file with a space or a percent sign.
    path = unquote(uri.removeprefix("file:")) if uri.startswith("file:") else uri
    return (base / path).resolve().as_uri()


def _absolute_pattern(uri: str, base: Path) -> str:
    absolute = _absolute(uri, base)
    if absolute == uri:
        return uri
    if uri.endswith("/") and not absolute.endswith("/"):
        absolute += "/"
    if not (base / uri).exists():  # a file that is really called so is no pattern
        for quoted, plain in _WILDCARDS.items():
            absolute = absolute.replace(quoted, plain)
    return absolute


def _read(kind: type[AnyKind], body: Body) -> AnyKind:
    parsed, violations = parse(kind, {key: value for key, value in body.items() if key != "status"}, "")
    if parsed is None:
        raise refusal(violations)
    return parsed


def _input(data: inference_job.DataSet) -> InputRef:
    tokenizer = None
    if (text := data.tokenizer) is not None:
        tokenizer = TokenizerRef(text.uri, text.column, text.max_length, text.sha256 or "")
    return InputRef(
        uri=data.uri or "",
        uris=data.uris,
        format=data.format,
        compression=data.compression,
        csv=CsvOptions(data.csv.delimiter, data.csv.columns) if data.csv is not None else CsvOptions(),
        key=data.key or "",
        columns=tuple(ColumnBinding(b.column, b.input, _decode(b.decode)) for b in data.columns),
        tokenizer=tokenizer,
    )


def _decode(decode: manifest_decode.Decode | None) -> ImageDecode | BytesDecode | None:
    if decode is None:
        return None
    if (windows := decode.bytes_) is not None:
        return BytesDecode(
            beginning=windows.beginning,
            middle=windows.middle,
            end=windows.end,
            padding=windows.padding,
            strip=windows.strip,
            block_size=windows.block_size,
            minimum=windows.minimum,
        )
    image = decode.image
    assert image is not None, "a rule of Decode"
    return ImageDecode(
        width=image.width,
        height=image.height,
        mode=image.mode,
        resize=image.resize,
        resample=image.resample,
        shorter_side=image.shorter_side or 0,
        layout=image.layout,
        orientation=image.orientation,
        fill=image.fill,
        scale=float(image.scale or 1),
        mean=tuple(float(mean) + 0.0 for mean in image.mean) or (0.0,),  # "-0" is 0
        std=tuple(map(float, image.std)) or (1.0,),
    )


def _output(output: inference_job.Output) -> OutputRef:
    steps = (PostprocessStep(step.operation, step.output, step.labels) for step in output.postprocess)
    return OutputRef(output.uri, output.format, tuple(steps))


def _placement(placement: inference_job.Placement) -> Placement:
    return Placement(
        hardware_classes=placement.hardware_classes,
        node_selector=tuple(sorted(placement.node_selector.items())),
        tolerations=tuple(
            Toleration(key=t.key or "", operator=t.operator, value=t.value or "", effect=t.effect)
            for t in placement.tolerations
        ),
        max_nodes=placement.max_nodes or 0,
        data_class=_DATA_CLASSES[placement.data_class],
    )


def _verification(verification: manifest_verification.Verification) -> Verification:
    return Verification(
        mode=verification.mode,
        quorum=verification.quorum or manifest_verification.DEFAULT_QUORUM,
        comparator=_comparator(verification.comparator),
        max_error_rate=float(verification.max_error_rate),
        audit_floor=float(verification.audit_floor),
    )


def _comparator(comparator: manifest_verification.Comparator) -> Comparator:
    if (close := comparator.all_close) is not None:
        return Comparator(ComparatorKind.ALL_CLOSE, rtol=float(close.rtol), atol=float(close.atol))
    if (cosine := comparator.cosine) is not None:
        return Comparator(ComparatorKind.COSINE, minimum=float(cosine.minimum))
    if (top := comparator.top_k) is not None:
        return Comparator(ComparatorKind.TOP_K, k=top.k, margin=float(top.margin))
    return Comparator()


def _price(price: hardware_class.Price) -> PriceList:
    own = {ModelDigest(model.sha256): read_money(model.per_item) for model in price.models}
    return PriceList(read_money(price.per_item), own)


def _created(metadata: ObjectMeta, fallback: float | None) -> float:
    if not metadata.creation_timestamp:
        return fallback or 0.0
    try:
        return datetime.fromisoformat(metadata.creation_timestamp).timestamp()
    except ValueError as error:
        raise InvalidSpecError(
            RefusalReason.INVALID_FIELD, f"must be a time, {error}", field="metadata.creationTimestamp"
        ) from error

"""The typed wire between the consortium and a hospital, and the one table of codes a hospital answers with.

A `Task` asks a hospital for one piece of work; a `Reply` carries what it released, or a code that says why it did not. No
path, name or exception text has a field to travel in. This is the only module of the package that imports Flower.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

PROTOCOL = 3
METRICS = frozenset({"validation_loss", "validation_auroc"})  # the only ones that a training's reply may name
_STYPE = "cxrbase.safetensors"
_LONGEST_HEADER = 1 << 20  # characters; a plan has some thousand
_LARGEST = 1e30  # of a header's numbers; their sums over hospitals stay finite, in float32 too


class Code(StrEnum):
    """Why a hospital refused a task or failed at it, or why the server rejected its reply."""

    PROTOCOL = "PROTOCOL"
    PLAN_INVALID = "PLAN_INVALID"
    PLAN_DIGEST = "PLAN_DIGEST"
    STATE_DIGEST = "STATE_DIGEST"
    STATE_INVALID = "STATE_INVALID"
    BASE_MISSING = "BASE_MISSING"
    SITE_INVALID = "SITE_INVALID"
    CACHE_MISSING = "CACHE_MISSING"
    CACHE_MISMATCH = "CACHE_MISMATCH"
    NO_PICTURES = "NO_PICTURES"
    NO_LABELS = "NO_LABELS"
    TASK_UNKNOWN = "TASK_UNKNOWN"
    POLICY = "POLICY"
    APPROVAL = "APPROVAL"
    BUNDLE = "BUNDLE"
    BUDGET = "BUDGET"
    DIVERGED = "DIVERGED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    FAILED = "FAILED"
    NOT_FINITE = "NOT_FINITE"
    NAMES = "NAMES"
    SHAPES = "SHAPES"
    LOCAL = "LOCAL"
    IDENTITY = "IDENTITY"
    ROUND = "ROUND"
    DUPLICATE = "DUPLICATE"
    NORM = "NORM"
    OUTLIER = "OUTLIER"
    SHORT = "SHORT"
    OPPOSED = "OPPOSED"
    EXAMPLES = "EXAMPLES"
    CLAIM = "CLAIM"
    SECURE = "SECURE"
    SPAN = "SPAN"
    CLIP = "CLIP"
    MALFORMED = "MALFORMED"
    NO_REPLY = "NO_REPLY"


MEANING: dict[Code, str] = {
    Code.PROTOCOL: "the two sides speak different protocol versions; update the older release",
    Code.PLAN_INVALID: "the plan does not pass the hospital's own check of it",
    Code.PLAN_DIGEST: "the plan's text and its digest differ, or it is not the plan of this run",
    Code.STATE_DIGEST: "the weights that arrived are not the weights that were sent",
    Code.STATE_INVALID: "the weights do not fit the plan's model",
    Code.BASE_MISSING: "the hospital does not hold the weights that the new ones are a difference to; it is sent the whole",
    Code.SITE_INVALID: "the hospital's own site file is missing or invalid",
    Code.CACHE_MISSING: "the hospital has no training cache; it has to run ingest",
    Code.CACHE_MISMATCH: "the hospital's cache was built to another data specification; it has to run ingest again",
    Code.NO_PICTURES: "the hospital has no pictures in the split that the task needs",
    Code.NO_LABELS: "the hospital has no labelled pictures for the task; it can still take part in pretraining",
    Code.TASK_UNKNOWN: "the task names a stage or kind that the plan does not have",
    Code.POLICY: "the hospital's policy does not allow the task",
    Code.APPROVAL: "the hospital has not approved the plan yet; it was told how to",
    Code.BUNDLE: "the code that was sent is not of the release that the hospital has installed, and it has not approved it",
    Code.BUDGET: "the training would spend more privacy than the hospital allows, or gives no guarantee where one is asked for",
    Code.DIVERGED: "the local loss was not finite; the update was not released",
    Code.OUT_OF_MEMORY: "the hospital's device ran out of memory",
    Code.FAILED: "the task failed in the hospital; its own log says why",
    Code.NOT_FINITE: "the update holds a number that is not finite",
    Code.NAMES: "the update's tensors have other names than the model's",
    Code.SHAPES: "a tensor of the update has another shape or type than the model's",
    Code.LOCAL: "the update changes a tensor that the plan's aggregation.keep_local leaves to each hospital",
    Code.IDENTITY: "the reply is in the name of another hospital than the one whose key it came with",
    Code.ROUND: "the reply belongs to another round",
    Code.DUPLICATE: "the hospital has replied in this round already",
    Code.NORM: "the update's norm is above the plan's bound, or its largest number times its examples above a million, more than a sum holds",
    Code.OUTLIER: "the update's norm is far above those that earlier rounds admitted, or those of the same round",
    Code.SHORT: "the update's norm is far below those of the same round, as if nobody had trained",
    Code.OPPOSED: "the update points away from where the others of the same round point",
    Code.EXAMPLES: "the reply claims no examples, or an absurd number of them",
    Code.CLAIM: "the reply claims more examples than the pictures that the hospital described allow",
    Code.SECURE: "a step of secure aggregation does not fit what the hospital knows of the round: keys, members, threshold or survivors",
    Code.SPAN: "a number of the update is beyond aggregation.secure.span; the update was not released",
    Code.CLIP: "the task's clip is not that of the plan's aggregation.privacy; nothing was released",
    Code.MALFORMED: "the reply is not one that this protocol knows",
    Code.NO_REPLY: "no reply came before the deadline, or the hospital's process died",
}


class WireError(ValueError):
    """A message is not one of this protocol; carries the code that says why."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.value)
        self.code = code


@dataclass(frozen=True)
class Task:
    """One piece of work for one hospital; `kind` is describe, pretrain, finetune, evaluate or a step of secure aggregation.

    `model` names the stage whose model `state` holds; it differs from `stage` in an evaluation. `state` is a difference to the weights
    of `base_digest`, or whole where that is empty; `state_digest` is that of what it becomes. In a step of secure aggregation
    `state` is a letter instead. `clip` is the norm that an update is clipped to under aggregation.privacy.
    `control_round` is the round of the stage that last took in this hospital's reply, 0 for none, under aggregation.scaffold and where
    updates are rounded: what the hospital keeps goes on from there.
    """

    kind: str
    run: str
    round: int
    stage: str
    stage_round: int
    model: str
    plan_text: str
    plan_digest: str
    state_digest: str = ""
    state: bytes = field(default=b"", repr=False)
    clip: float | None = None
    control_round: int = 0
    base_digest: str = ""


@dataclass(frozen=True)
class Reply:
    """What a hospital released for a task, or (code is set) why it released nothing.

    `control_round` is the task's where the hospital still had what it kept then (aggregation.scaffold), else 0.
    """

    site: str
    kind: str
    round: int
    stage: str
    plan_digest: str
    code: Code | None = None
    examples: int = 0
    steps: int = 0
    loss: float | None = None
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    description: dict[str, Any] | None = None
    control_round: int = 0
    update: bytes = field(default=b"", repr=False)


_MESSAGE_TYPES = {"describe": "query", "pretrain": "train", "finetune": "train", "evaluate": "evaluate"}
_MESSAGE_TYPES |= dict.fromkeys(("secure-shares", "secure-masked", "secure-confirm", "secure-unmask"), "query")


def task_to_message(task: Task, node_id: int, ttl: float) -> Message:
    """The Flower message of a task; `ttl` in seconds is how long it and its reply stay valid."""
    header = {name: value for name, value in vars(task).items() if name != "state"}
    return Message(_content(header, task.state), node_id, _MESSAGE_TYPES[task.kind], ttl=ttl, group_id=str(task.round))


def task_from_message(message: Message) -> Task:
    """The task of a message; WireError where the protocol differs or a field is missing."""
    header, blob = _split(message)
    task: Task = _build(Task, header, state=blob)
    return task


def reply_to_message(reply: Reply, request: Message) -> Message:
    """The Flower reply to a request."""
    header = {name: value for name, value in vars(reply).items() if name != "update"}
    return Message(_content(header, reply.update), reply_to=request)


def reply_from_message(message: Message) -> Reply:
    """The reply of a message; WireError where it is none, NO_REPLY where Flower reports that the hospital's process failed."""
    if message.has_error():
        raise WireError(Code.NO_REPLY)
    header, blob = _split(message)
    try:
        header["code"] = Code(header["code"]) if header.get("code") is not None else None
    except ValueError:
        raise WireError(Code.MALFORMED) from None
    reply: Reply = _build(Reply, header, update=blob)
    return reply


def _content(header: dict[str, Any], blob: bytes) -> RecordDict:
    records = RecordDict({"cxrbase": ConfigRecord({"protocol": PROTOCOL, "header": json.dumps(header)})})
    if blob:
        records["arrays"] = ArrayRecord({"packed": Array("uint8", (len(blob),), _STYPE, blob)})
    return records


def _split(message: Message) -> tuple[dict[str, Any], bytes]:
    config = message.content.config_records.get("cxrbase")
    if config is None:
        raise WireError(Code.MALFORMED)
    if config.get("protocol") != PROTOCOL:
        raise WireError(Code.PROTOCOL)
    header = _header(config.get("header"))
    arrays = message.content.array_records.get("arrays")
    blob = arrays["packed"].data if arrays is not None and "packed" in arrays else b""
    return header, blob


def _header(text: object) -> dict[str, Any]:
    """The header of a JSON text, which may be anybody's; WireError where it is none, or a number of it is not finite or absurd."""
    if not isinstance(text, str) or len(text) > _LONGEST_HEADER:
        raise WireError(Code.MALFORMED)
    try:
        header = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except (ValueError, RecursionError):
        raise WireError(Code.MALFORMED) from None
    if not isinstance(header, dict):
        raise WireError(Code.MALFORMED)
    return header


def _finite(text: str) -> float:
    number = float(text)
    if not abs(number) <= _LARGEST:
        raise ValueError
    return number


def _whole(text: str) -> int:
    number = int(text)
    if abs(number) > _LARGEST:
        raise ValueError
    return number


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (float, int), "bytes": (bytes,), "float | None": (float, int, type(None)),
    "Code | None": (Code, type(None)), "dict[str, float]": (dict,), "dict[str, Any] | None": (dict, type(None)),
}  # fmt: skip


def _build(cls: type[Any], header: dict[str, Any], **blob: bytes) -> Any:
    """The dataclass of a header whose fields all have the declared types; WireError otherwise."""
    values = {**header, **blob}
    fields = cls.__dataclass_fields__
    if values.keys() != fields.keys():
        raise WireError(Code.MALFORMED)
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, _TYPES[fields[name].type]):
            raise WireError(Code.MALFORMED)
        if fields[name].type == "dict[str, float]" and not _are_metrics(value):
            raise WireError(Code.MALFORMED)
    return cls(**values)


def _are_metrics(found: Any) -> bool:
    known = found.keys() <= METRICS and all(type(value) in (int, float) for value in found.values())
    return known and 0 <= found.get("validation_auroc", 0) <= 1

"""The stages of a plan: what is trained or tested, by which objective, with which optimizer and augmentation."""

from __future__ import annotations

from dataclasses import dataclass

from cxrbase_model.settings import knob

_INIT = "random, previous, stage:NAME, timm:NAME or file:PATH (a folder of an export, or a .pth or .safetensors, at the server)"


@dataclass(frozen=True)
class Augmentation:
    """Radiograph-safe augmentation, drawn per picture on the training device."""

    crop: float = knob(0.5, low=0.05, high=1.0, why="smallest share of the area that a random resized crop keeps")
    rotation: float = knob(5.0, unit="degrees", low=0.0, high=45.0, why="largest rotation to either side")
    contrast: float = knob(0.2, low=0.0, high=0.9, why="largest relative change of contrast and brightness")
    gamma: float = knob(0.2, low=0.0, high=0.9, why="largest change of log gamma: other detectors and windows")
    noise: float = knob(0.02, low=0.0, high=0.5, why="largest standard deviation of added noise, of the full range")
    erase: float = knob(0.0, low=0.0, high=1.0, why="chance that a rectangle is erased: markers and devices")
    flip: bool = knob(False, why="mirror left and right; off, since the heart has a side and its place is a finding")


@dataclass(frozen=True)
class Optimizer:
    """AdamW with warm-up and cosine decay over the stage's global step."""

    lr: float = knob(1.5e-4, low=0.0, high=1.0, why="base learning rate; scaled by batch size / 256")
    weight_decay: float = knob(
        0.05, low=0.0, high=1.0, why="decoupled weight decay of matrices, none for norms and biases"
    )
    beta2: float = knob(0.95, low=0.5, high=0.9999, why="second-moment decay; 0.95 for MAE, 0.999 for fine-tuning")
    warmup: float = knob(0.05, low=0.0, high=0.9, why="share of the stage's steps in which the rate rises from zero")
    min_lr: float = knob(0.0, low=0.0, high=1.0, why="share of the peak rate that is left at the end")
    clip_grad: float | None = knob(None, low=0.0, why="largest global gradient norm of a step, where it is bounded")
    state: str = knob(
        "keep",
        choices=("keep", "reset"),
        why="keep AdamW's moments in the hospital from round to round, or reset them; they never travel",
    )


@dataclass(frozen=True)
class Teacher:
    """The average of past encoders whose features are predicted; it is part of the weights, so it goes on over rounds."""

    momentum: float = knob(
        0.996, low=0.0, high=1.0, why="share of itself that it keeps in a step; rises to 1 by half a cosine (BYOL)"
    )
    blocks: int = knob(8, low=1, high=48, why="its last blocks, all if it has fewer, whose mean output is predicted")


@dataclass(frozen=True)
class PretrainStage:
    """Rounds of self-supervised pretraining: most patches are hidden, and something about them is predicted.

    `mae` predicts their pixels (He et al. 2022, arXiv 2111.06377), `features` what an average of past encoders sees in them
    (data2vec, Baevski et al. 2022, arXiv 2202.03555). Repeated masks are those of data2vec 2.0 (arXiv 2212.07525).
    """

    kind: str = knob("pretrain", choices=("pretrain",), why="names the stage type")
    name: str = knob("pretrain", why="names the stage in references, reports and files")
    init: str = knob("random", why=_INIT)
    rounds: int = knob(10, low=1, high=100_000, why="federated rounds of the stage")
    local_epochs: float = knob(
        1.0, unit="epochs", low=0.001, high=1000, why="passes over a hospital's pictures a round"
    )
    batch_size: int = knob(64, unit="pictures", low=1, high=65536, why="pictures a step in each hospital")
    objective: str = knob("mae", choices=("mae", "features"), why="what is predicted: pixels, or a teacher's features")
    mask_ratio: float = knob(0.9, low=0.05, high=0.98, why="share of patches hidden from the encoder")
    masks: int = knob(1, low=1, high=64, why="masks of one picture in a step: more learning for one load and one crop")
    decode: float = knob(
        1.0, low=0.01, high=1.0, why="share of the hidden patches that are predicted; below 1 with model.decoder: cross"
    )
    normalize_targets: bool = knob(True, why="mae predicts patches normalised by their own mean and deviation")
    teacher: Teacher = knob(factory=Teacher, why="whose features are predicted, for objective: features")
    optimizer: Optimizer = knob(factory=Optimizer, why="the local optimizer")
    augmentation: Augmentation = knob(factory=Augmentation, why="local augmentation")


@dataclass(frozen=True)
class Loss:
    """What an error in one finding of one picture costs; unknown labels cost nothing.

    `asymmetric` leaves easy negatives out (Ridnik et al. 2021, arXiv 2009.14119), where most findings are absent in most pictures.
    """

    kind: str = knob("bce", choices=("bce", "asymmetric"), why="binary cross-entropy, or its asymmetric form")
    focus_positive: float = knob(0.0, low=0.0, high=10.0, why="exponent that quiets easy positives (asymmetric)")
    focus_negative: float = knob(4.0, low=0.0, high=10.0, why="exponent that quiets easy negatives (asymmetric)")
    margin: float = knob(0.05, low=0.0, high=0.5, why="probability below which a negative costs nothing (asymmetric)")


@dataclass(frozen=True)
class FinetuneStage:
    """Rounds of supervised multi-label fine-tuning on labels of which many may be unknown.

    A linear probe is `trains: head`, an attentive one `trains: head` with `pooling: attentive`.
    """

    kind: str = knob("finetune", choices=("finetune",), why="names the stage type")
    name: str = knob("finetune", why="names the stage in references, reports and files")
    init: str = knob("previous", why=_INIT)
    rounds: int = knob(10, low=1, high=100_000, why="federated rounds of the stage")
    local_epochs: float = knob(1.0, unit="epochs", low=0.001, high=1000, why="passes over a hospital's labels a round")
    batch_size: int = knob(32, unit="pictures", low=1, high=65536, why="pictures a step in each hospital")
    balance: str = knob(
        "none", choices=("none", "findings"),
        why="take pictures in turn, or draw them so that findings come up alike, present as often as absent, however rare in the hospital",
    )  # fmt: skip
    label_fraction: float = knob(1.0, low=0.0001, high=1.0, why="share of the training patients whose labels are used")
    trains: str = knob(
        "all", choices=("all", "head", "last", "lora"),
        why="all weights; the head on a frozen encoder; with it the last blocks; or low-rank changes of all blocks",
    )  # fmt: skip
    pooling: str = knob(
        "mean",
        choices=("mean", "grid", "attentive"),
        why="what the head sees: the mean patch, the mean patch of each region, or one attention query a finding",
    )
    grid: int = knob(4, unit="regions", low=2, high=64, why="regions a side that `pooling: grid` has")
    standardise: bool = knob(
        False,
        why="subtract the mean of each patch's features and divide by their deviation, as the encoder that `init` names tells them: "
        "those of the public pictures that it was pretrained on",
    )
    last_blocks: int = knob(2, unit="blocks", low=1, high=48, why="how many blocks `trains: last` trains")
    lora_rank: int = knob(8, low=1, high=256, why="rank of the changes that `trains: lora` trains")
    loss: Loss = knob(factory=Loss, why="what an error costs")
    layer_decay: float = knob(
        0.75, low=0.1, high=1.0, why="factor of the learning rate from each block to the one below"
    )
    drop_path: float = knob(0.1, low=0.0, high=0.9, why="stochastic depth of the last block; rises linearly to it")
    positive_weight: float = knob(
        4.0,
        low=1.0,
        high=100.0,
        why="cap on the weight of positives, which is negatives over positives in the hospital",
    )
    optimizer: Optimizer = knob(factory=lambda: Optimizer(lr=1e-3, beta2=0.999), why="the local optimizer")
    augmentation: Augmentation = knob(factory=lambda: Augmentation(crop=0.7), why="local augmentation")


@dataclass(frozen=True)
class EvaluateStage:
    """One evaluation of finished fine-tuning stages in every hospital, on patients that no training saw."""

    kind: str = knob("evaluate", choices=("evaluate",), why="names the stage type")
    name: str = knob("evaluate", why="names the stage in references, reports and files")
    of: tuple[str, ...] = knob((), why="fine-tuning stages to evaluate; empty means all before this one")
    split: str = knob("test", choices=("validation", "test"), why="which held-out patients")


Stage = PretrainStage | FinetuneStage | EvaluateStage


def balance_of(stage: PretrainStage | FinetuneStage) -> str:
    """How the pictures of a stage are drawn; pretraining knows no findings to balance."""
    return stage.balance if isinstance(stage, FinetuneStage) else "none"

"""The federation file's section `local`: a site's training between two synchronisations."""

from typing import Literal

from pydantic import Field, model_validator

from schemas.presets import our_warmup
from schemas.sections.base import Section
from schemas.sections.values import Beta, MicroBatch, Options, wrong


class Optimizer(Section):
    """The inner optimizer: AdamW, or Muon for the hidden matrices with AdamW for embeddings, biases and norms."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(default=6e-4, gt=0, description="maximum learning rate of AdamW", examples=[6e-4])
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.95), examples=[[0.9, 0.95]])
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    matrix_lr: float = Field(default=0.02, gt=0, description="muon: maximum learning rate of the hidden matrices")
    momentum: Beta = Field(default=0.95, description="muon: momentum of the hidden matrices' gradients")

    @model_validator(mode="after")
    def _muon(self) -> "Optimizer":
        for name in ("matrix_lr", "momentum"):
            value = getattr(self, name)
            if self.name == "adamw" and value != type(self).model_fields[name].default:
                raise wrong(f"{value:g} is only for muon, but the optimizer is adamw; write name: muon", name)
        return self


class Schedule(Section):
    """The learning rate as a function of the global step. It does not restart with each round."""

    name: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int | None = Field(
        default=0, ge=0, description="steps of linear warm-up; null: 30, or a quarter of a shorter schedule"
    )
    total_steps: int | None = Field(
        default=None,
        ge=1,
        description="T of the cosine, after which the rate stays at alpha; default: rounds.count x local.steps, "
        "both as they are when the run starts: raising them later does not change T",
    )
    alpha: float = Field(default=0.1, ge=0, le=1, description="final / maximum learning rate")

    def warmup(self, total_steps: int) -> int:
        """Warm-up steps of a schedule with this number of steps."""
        return our_warmup(total_steps) if self.warmup_steps is None else self.warmup_steps


class Logger(Section):
    """One of Composer's loggers."""

    name: Literal["tensorboard", "mlflow", "wandb", "file"]
    options: Options = Field(
        default_factory=dict,
        description="keyword arguments of Composer's logger; a file name is relative to <state_dir>/log",
    )

    @model_validator(mode="after")
    def _file(self) -> "Logger":
        """Composer overwrites its file at each start, so the file must be where nothing else is."""
        name = self.options.get("filename")
        if self.name == "file" and name is not None:
            parts = name.split("/") if isinstance(name, str) else [".."]
            if parts[0] in ("", "~") or ".." in parts or not parts[-1]:
                raise wrong(
                    f"{name!r} is not the name of a file below <state_dir>/log, and Composer overwrites the file; "
                    "write one such as composer.log",
                    "options", "filename",
                )  # fmt: skip
        return self


class Local(Section):
    """A site's training between two synchronisations."""

    steps: int = Field(ge=1, description="H, optimizer steps per round", examples=[128])
    batch_size: int = Field(ge=1, description="sequences per step at a site", examples=[32])
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    micro_batch: MicroBatch = Field(
        default=None,
        description="sequences per forward pass; gradients are accumulated; auto: the most that fit the site's "
        "device, measured once (with FSDP by Composer's halving, in every round); default: the whole "
        "batch",
    )
    memory_gb: float | None = Field(
        default=None,
        gt=0,
        description="micro_batch auto: memory limit of training, in 10^9 bytes; a site's hardware.memory_gb "
        "applies if it is smaller",
    )
    proximal: float | None = Field(
        default=None, gt=0, description="mu of FedProx: adds mu/2 |theta_k - theta|^2 to the site's loss"
    )
    precision: Literal["fp32", "amp_bf16"] = "fp32"
    compile: bool | None = Field(
        default=None,
        description="use of torch.compile: slow first steps, then faster; default: on a GPU. Not with FSDP",
    )
    clip_norm: float | None = Field(default=1.0, gt=0, description="gradient norm limit; null: none")
    optimizer_state: Literal["keep", "reset", "average"] = Field(
        default="keep",
        description="the optimizer's moments between rounds: kept at the site, reset, or averaged over the sites "
        "like the parameters (which sends two to three times the bytes)",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_steps: int | None = Field(
        default=100,
        ge=1,
        description="local steps between the site's local checkpoints, from which a killed training resumes; "
        "null: none",
    )
    evaluate: bool = Field(
        default=True,
        description="also evaluate each site's own model on its held-out text, before averaging",
    )
    loggers: list[Logger] = Field(default_factory=list)

    @model_validator(mode="after")
    def _precision(self) -> "Local":
        if self.device == "cpu" and self.precision == "amp_bf16":
            raise wrong("amp_bf16 does not train on the CPU; write fp32, or device: cuda", "precision")
        return self

    @model_validator(mode="after")
    def _micro_batch(self) -> "Local":
        if isinstance(self.micro_batch, int) and self.micro_batch > self.batch_size:
            raise wrong(
                f"{self.micro_batch} sequences at once, but batch_size is {self.batch_size}; write at most that, "
                "or auto",
                "micro_batch",
            )
        return self

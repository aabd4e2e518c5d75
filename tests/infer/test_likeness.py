"""What is no upright frontal chest is told by its pixels, under any tone curve, whatever its header says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pacs_node.config import Config
from pacs_node.dicom.files import open_dicom
from pacs_node.dicom.pixels import read_radiograph
from pacs_node.errors import Refused
from pacs_node.infer.likeness import LEAST, check_chest, resemblance
from pacs_node.phantom import Phantom


@pytest.fixture(scope="module", params=[(1, "PA"), (3, "AP")])
def chest(request: pytest.FixtureRequest) -> np.ndarray:
    seed, view = request.param
    return Phantom(seed, view).render(256).radiograph


def test_a_chest_passes_however_it_is_toned_and_cut(chest: np.ndarray) -> None:
    score = resemblance(chest)
    check_chest(chest)
    assert score > LEAST + 5
    for other in (chest**2.2, chest**0.45, 0.3 + 0.2 * chest):
        assert resemblance(other.astype(np.float32)) == pytest.approx(score, abs=0.5)
    check_chest(np.ascontiguousarray(chest[:, ::-1]))
    check_chest(np.ascontiguousarray(chest[16:-16, 10:-10]))
    check_chest(np.pad(chest, 40, constant_values=1))  # collimated, shown white


@pytest.mark.parametrize("turns", [1, 3])
def test_a_chest_that_lies_is_refused(chest: np.ndarray, turns: int) -> None:
    with pytest.raises(Refused, match="do not look like an upright frontal chest") as refused:
        check_chest(np.ascontiguousarray(np.rot90(chest, turns)))
    assert refused.value.code == "not-a-chest"
    assert "limits.check_content" in str(refused.value)


def test_an_inverted_chest_and_noise_are_refused(chest: np.ndarray) -> None:
    for wrong in (1 - chest, np.random.default_rng(0).random((256, 256), np.float32)):
        with pytest.raises(Refused):
            check_chest(wrong)


def test_real_chests_pass_and_limbs_do_not(data_dir: Path) -> None:
    scores = {
        path.name: resemblance(read_radiograph(open_dicom(path, 1 << 30), Config().limits.max_pixels).image)
        for path in sorted((data_dir / "dicom").glob("*.dcm"))
    }
    assert len(scores) >= 11
    for name, score in scores.items():
        if name.startswith("NEG"):
            assert score < LEAST - 2, name
        else:
            assert score > LEAST + 5, name

"""A loop over two sessions whose values stay on the device gives what arrays give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pacs_node.errors import ModelError
from pacs_node.infer import Settings, nvidia, providers, read_card
from pacs_node.infer.session import open_beside, open_session

MakeModel = Callable[..., Path]


@pytest.mark.parametrize("provider", ["cpu", "openvino", "cuda"])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_bound_loop_is_the_loop_of_arrays(make_model: MakeModel, provider: str, fixed: bool) -> None:
    """Also with outputs in fixed places, which a CUDA graph needs: nothing is overwritten that is in use."""
    if provider not in providers.available() or (provider == "cuda" and nvidia.missing("cuda")):
        pytest.skip(f"there is no {provider} here")
    settings = Settings((provider,), precision="f32")
    card = read_card(make_model("tiny-bone"))
    denoiser = replace(open_session(card, "denoiser", settings), fixed=fixed)
    # The denoiser's own file stands for the update: its prediction is the next sample.
    update = open_beside(denoiser, denoiser.path, denoiser.graph, settings)
    assert (update.choice.provider, update.fixed) == (denoiser.choice.provider, fixed)
    random = np.random.default_rng(0)
    for count in (1, 2, 1):  # another batch in between, as with two paths
        shape = (count, 4, 8, 8)
        x, z = (random.standard_normal(shape, np.float32) for _ in range(2))
        wanted, state, condition = x, denoiser.put(x), denoiser.put(z, "condition")
        for t in (900.0, 500.0, 300.0, 100.0, 0.0):
            time = np.full(count, t, np.float32)
            wanted = denoiser.run(sample=wanted, condition=z, timestep=time)["prediction"]
            wanted = denoiser.run(sample=wanted, condition=z, timestep=time)["prediction"]
            state = denoiser.bound(sample=state, condition=condition, timestep=time)["prediction"]
            last, kept = state, state.numpy().copy()
            state = update.bound(sample=state, condition=condition, timestep=time)["prediction"]
            denoiser.bound(sample=state, condition=condition, timestep=time)
            np.testing.assert_array_equal(last.numpy(), kept)  # one call later it is still there
        tolerance = 1e-5 if provider == "cuda" else 0  # there a recorded graph may choose other kernels
        np.testing.assert_allclose(update.fetch("state", state), wanted, rtol=tolerance, atol=tolerance)


def test_what_is_fetched_must_be_finite(make_model: MakeModel) -> None:
    card = read_card(make_model("tiny-bone"))
    session = open_session(card, "decoder", Settings(("cpu",)))
    value = session.put(np.full((1, 1, 2, 2), np.nan, np.float32))
    with pytest.raises(ModelError, match="output 'image' holds values that are not finite"):
        session.fetch("image", value)

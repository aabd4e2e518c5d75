"""The loop and its update graph: on the device, in single precision, seeded, the same bits again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_reference import make, norm, update, walk
from tiny_models import TINY, blocks, smooth, variant

from pacs_node.conditions import Conditions
from pacs_node.errors import ModelError
from pacs_node.infer import Settings, load, read_card
from pacs_node.infer.diffusion import Count, Diffusion
from pacs_node.infer.providers import available
from pacs_node.infer.sampling import loop
from pacs_node.infer.sampling.loop import UPDATE, UPDATE_GRAPH, Lane
from pacs_node.infer.sampling.noise import Level
from pacs_node.infer.sampling.step import COEFFICIENTS, Step
from pacs_node.infer.session import Session, open_beside, open_session

MakeModel = Callable[..., Path]
NONE = np.zeros((1, 1, 1, 1), np.float32)
ONE = np.ones((1, 1, 1, 1), np.float32)
UNLIMITED = np.full((1, 1, 1, 1), np.finfo(np.float32).max)


def beside(provider: str) -> Session:
    """The update graph on a provider, opened as the loop opens it."""
    if provider not in available():
        pytest.skip(f"the installed ONNX Runtime has no {provider}")
    chosen = Settings((provider,), threads=1)  # bf16 for the denoiser where there is, never for the update
    denoiser = open_session(read_card(TINY / "tiny-bone"), "denoiser", chosen)
    return open_beside(denoiser, UPDATE, UPDATE_GRAPH, chosen)


@pytest.fixture(scope="module", params=["cpu", "openvino"])
def session(request: pytest.FixtureRequest) -> Session:
    return beside(request.param)


def run(session: Session, **inputs: np.ndarray) -> list[np.ndarray]:
    outputs = session.bound(**{name: value.astype(np.float32) for name, value in inputs.items()})
    return [outputs[f"{name}_next"].numpy() for name in ("x", "base", "clean", "before")]


def single(step: Step, kind: str) -> np.ndarray:
    return step.coefficients(kind).astype(np.float32)


@pytest.mark.torch
def test_the_committed_graph_is_the_one_that_its_script_makes() -> None:
    pytest.importorskip("onnx", reason="the torch side (make test-all)")
    from export.update_graph import model

    assert model().SerializeToString(deterministic=True) == UPDATE.read_bytes()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["epsilon", "v_prediction", "sample", "score"]),
    factors=st.lists(st.floats(-3, 3), min_size=6, max_size=6),
    alpha=st.floats(0.1, 1),
    keep=st.booleans(),
    drawn=st.booleans(),
    langevin=st.sampled_from([0.0, 0.3]),
    bound=st.sampled_from([0.5, 2.0, 1e30]),
    images=st.integers(1, 3),
)
def test_the_graph_is_the_update(
    seed: int,
    kind: str,
    factors: list[float],
    alpha: float,
    keep: bool,
    drawn: bool,
    langevin: float,
    bound: float,
    images: int,
) -> None:
    """Of random registers and coefficients, against double precision by hand."""
    rng, shape = np.random.default_rng(seed), (images, 2, 3, 5)
    clean, noisy, noise, last, before, base = factors
    step = Step(
        Level(3.0, 3.0, alpha, (1 - alpha**2) ** 0.5 + 0.1),
        clean,
        noisy,
        noise if drawn else 0.0,
        last,
        before,
        base,
        keep,
        langevin if drawn else 0.0,
    )
    x, kept, first, second, prediction, z = rng.standard_normal((6, *shape)).astype(np.float32)
    z = z if drawn else NONE
    found = run(
        _CPU(),
        prediction=prediction,
        x=x,
        base=kept,
        last=first,
        before=second,
        noise=z,
        guidance_noise=NONE,
        guidance=ONE,
        limit=np.full((1, 1, 1, 1), bound),
        coefficients=single(step, kind),
    )
    expected = update([x, kept, first, second], prediction, z, step, kind, bound)
    for value, wanted in zip(found, expected, strict=True):
        scale = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(value, wanted, rtol=0, atol=3e-5 * scale)


_sessions: list[Session] = []


def _CPU() -> Session:  # noqa: N802  a constant, made when it is first needed
    if not _sessions:
        _sessions.append(beside("cpu"))
    return _sessions[0]


def test_guidance_and_limit_of_each_lane(session: Session) -> None:
    """g p + (1 - g) z / std(p) for the second image, and its own limit; the first as it is."""
    rng = np.random.default_rng(4)
    p, z = rng.standard_normal((2, 2, 3, 8, 8)).astype(np.float32) * 2
    guidance = np.array([1, 3], np.float32).reshape(-1, 1, 1, 1)
    scatter = (1 - guidance) * z
    found = run(
        session,
        prediction=p,
        x=p,
        base=p,
        last=p,
        before=p,
        noise=NONE,
        guidance_noise=scatter,
        guidance=guidance,
        limit=np.array([1.0, 2.5]).reshape(-1, 1, 1, 1),
        coefficients=single(Step(Level(0.0, 0.0, 1.0, 1.0), clean=1.0), "sample"),
    )[0]
    np.testing.assert_allclose(found[0], np.clip(p[0], -1, 1), atol=1e-6)
    np.testing.assert_allclose(found[1], np.clip(3 * p[1] - 2 * z[1] / p[1].std(), -2.5, 2.5), atol=1e-5)


def test_the_langevin_stride_goes_by_the_norms(session: Session) -> None:
    rng, level = np.random.default_rng(5), Level(0.0, 0.0, 0.8, 0.6)
    x, p, z = rng.standard_normal((3, 2, 3, 8, 8)).astype(np.float32)
    found = run(
        session,
        prediction=p,
        x=x,
        base=x,
        last=x,
        before=x,
        noise=z,
        guidance_noise=NONE,
        guidance=ONE,
        limit=UNLIMITED,
        coefficients=single(Step(level, noisy=1.0, langevin=2 * 0.16**2), "score"),
    )[0]
    length = 2 * (0.16 * norm(z) / norm(p)) ** 2
    np.testing.assert_allclose(found, x + length * p + (2 * length) ** 0.5 * z, atol=2e-5)


def test_a_prediction_that_is_not_finite_shows(session: Session) -> None:
    """Though the estimate is limited: what the network made of its numbers must not pass for a result."""
    x = np.ones((1, 2, 3, 5), np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        prediction = x.copy()
        prediction[0, 1, 2, 3] = bad
        found = run(
            session,
            prediction=prediction,
            x=x,
            base=x,
            last=x,
            before=x,
            noise=NONE,
            guidance_noise=NONE,
            guidance=ONE,
            limit=ONE,
            coefficients=single(Step(Level(0.0, 0.0, 1.0, 1.0), clean=1.0), "sample"),
        )[0]
        assert np.isnan(found[0, 1, 2, 3])


def network(x: np.ndarray, told: float) -> np.ndarray:
    return np.tanh(x * (1 + 0.3 * np.sin(told / 200))) + 0.1 * np.cos(told / 90)


CASES = [
    ("ddpm", "linear", "epsilon", {}),
    ("ddim", "scaled_linear", "v_prediction", {"eta": 0.6}),
    ("dpmpp_multistep", "scaled_linear", "epsilon", {"order": 3, "sigmas": "karras"}),
    ("dpmpp_singlestep", "squaredcos_cap_v2", "sample", {"order": 3, "spacing": "linspace"}),
    ("sde_dpmpp", "linear", "v_prediction", {}),
    ("euler", "linear", "epsilon", {"spacing": "leading"}),
    ("euler_ancestral", "sigmoid", "v_prediction", {}),
    ("heun", "scaled_linear", "epsilon", {"sigmas": "exponential"}),
    ("lcm", "scaled_linear", "epsilon", {"clip_start": 1.2, "clip_slope": 0.0005}),
    (
        "langevin",
        "ncsn",
        "score",
        {"langevin_steps": 3, "step_size": 0.01, "sigma_min": 0.1, "train_steps": 30},
    ),
    ("reverse_diffusion", "ve", "epsilon", {"corrector_steps": 1}),
    ("euler_maruyama", "sub_vp", "epsilon", {}),
    ("ancestral", "vp", "sample", {"corrector_steps": 2}),
    ("probability_flow", "vp", "epsilon", {}),
]


@pytest.mark.parametrize(("name", "schedule", "kind", "keys"), CASES)
def test_whole_walks_on_the_device_are_those_of_double_precision(
    session: Session, name: str, schedule: str, kind: str, keys: dict
) -> None:
    """Every x of the walk to 1e-5 of the largest value, single precision and the same noise."""
    _, plan, table = make(name, 30, schedule, kind, **keys)
    shape, seen, counted = (2, 6, 6), [], []

    def asked(x: object, told: float) -> np.ndarray:
        array = x if isinstance(x, np.ndarray) else x.numpy()
        seen.append(np.array(array, np.float64))
        return network(array, told).astype(np.float32)

    end = loop.walk(
        plan,
        table,
        asked,
        session.bound,
        shape,
        np.random.default_rng(8),
        [Lane(table.clip_start)],
        lambda: counted.append(1),
    )
    rng = np.random.default_rng(8)
    start = rng.standard_normal((1, *shape), dtype=np.float32)
    draws = [rng.standard_normal((1, *shape), dtype=np.float32) for step in plan if step.random]

    def bound(step: Step) -> float:
        return (
            np.inf if table.clip_start is None else loop.limit(step, 1000, table.clip_start, table.clip_slope)
        )

    expected = walk(plan, kind, lambda x, level: network(x, level.told), start, draws, bound)
    scale = max(1.0, max(float(np.abs(x).max()) for x in expected[-2:]))
    for mine, wanted in zip([*seen, end.numpy()], expected, strict=True):
        largest = max(scale, float(np.abs(wanted).max()))
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-5 * largest)
    assert len(counted) == len(plan)


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_same_seed_same_bits_of_a_stochastic_sampler(make_model: MakeModel, provider: str) -> None:
    """Told a wrong kind of prediction, the tiny model no longer ends in its one point, whatever the noise."""
    if provider not in available():
        pytest.skip(f"the installed ONNX Runtime has no {provider}")
    replace = {"v_prediction": "sample", '"ddpm"': '"sde_dpmpp"', "steps = 4": "steps = 6"}
    settings_ = Settings((provider,))
    first = load(read_card(make_model("tiny-restoration", folder="a", replace=replace)), settings_)
    again = load(read_card(make_model("tiny-restoration", folder="b", replace=replace)), settings_)
    image = smooth(64, 64)
    ends = [
        model(image, Conditions(), seed).image.tobytes()
        for model, seed in ((first, 3), (first, 4), (again, 3))
    ]
    assert ends[0] == ends[2] != ends[1]


def test_the_update_runs_where_the_denoiser_runs_and_exactly(session: Session) -> None:
    assert session.choice.precision == "f32"
    assert session.choice.provider == session.runtime.get_providers()[0]


def test_the_state_stays_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first step to the last no value is fetched, and only small arrays and noise are put."""
    card, chosen = read_card(TINY / "tiny-bone"), Settings(("cpu",))
    sampling = Diffusion(card, open_session(card, "denoiser", chosen), chosen)
    put, fetched = [], []
    bound, fetch = Session.bound, Session.fetch

    def watched(self: Session, **inputs: object) -> object:
        put.extend(
            name for name, value in inputs.items() if isinstance(value, np.ndarray) and value.size > 14
        )
        return bound(self, **inputs)

    monkeypatch.setattr(Session, "bound", watched)
    monkeypatch.setattr(Session, "fetch", lambda self, *a: fetched.append(a[0]) or fetch(self, *a))
    sampling.sample(np.zeros((1, 4, 8, 8), np.float32), 0, Count(5, None))
    # The start, given to the denoiser and then as all four registers; DDIM draws nothing later.
    assert put == ["sample", "x", "base", "last", "before"]
    assert fetched == ["prediction"]


def test_what_is_not_finite_is_told_with_the_denoisers_file(make_model: MakeModel) -> None:
    folder = make_model("tiny-restoration", files={"denoiser.onnx": variant("not_finite.onnx")})
    with pytest.raises(
        ModelError, match=r"denoiser\.onnx: the output 'prediction' holds values that are not fin"
    ):
        load(read_card(folder), Settings(("cpu",)))(smooth(64, 64), Conditions(), 0)


@pytest.mark.parametrize(
    "name", ["dpmpp_multistep", "dpmpp_singlestep", "euler", "heun", "euler_ancestral", "lcm"]
)
def test_the_configuration_may_ask_for_another_sampler(name: str) -> None:
    """Of the tiny bone suppression every sampler makes the same, its one point."""
    image = blocks(64, 64, 8)
    result = load(read_card(TINY / "tiny-bone"), Settings(("cpu",), sampler=name, steps=12))(
        image, Conditions(), 0
    )
    np.testing.assert_allclose(result.image, image / 2, atol=2e-5)
    assert (result.parameters["sampler"], result.parameters["steps"]) == (name, 12)


def test_a_sampler_that_the_model_cannot_do_is_told_when_it_is_loaded() -> None:
    with pytest.raises(
        ModelError, match=r"tiny-bone: the sampler .langevin. walks .* Use the sampler .ddpm."
    ):
        load(read_card(TINY / "tiny-bone"), Settings(("cpu",), sampler="langevin"))


def test_the_coefficients_are_as_many_as_the_graph_takes() -> None:
    assert UPDATE_GRAPH.inputs["coefficients"] == (str(len(COEFFICIENTS)),)

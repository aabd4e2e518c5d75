# ruff: noqa: E501  (tables: one case a line)
"""Every mistake in a configuration: file, line, key, and what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pacs_node.config import Config, load
from pacs_node.config.load import locate, parse
from pacs_node.errors import ConfigurationError, Problem
from pacs_node.tasks import Task

MINIMAL = """\
node: {ae_title: PACS_NODE, state_dir: /var/lib/pacs-node}
destinations:
  PACS: {type: dicom, ae_title: PACS, host: 192.0.2.10, port: 104}
rules:
  - name: chest
    when: {Modality: [CR, DX]}
    tasks: [bone_suppression, restoration, anomaly]
    destinations: [PACS]
"""
EXAMPLE = Path(__file__).parents[2] / "deploy" / "pacs-node.yaml"


def read(text: str, environ: dict[str, str] | None = None) -> Config:
    return parse(text, "pacs-node.yaml", Path("/etc/pacs-node"), environ or {})[0]


def problems(text: str, environ: dict[str, str] | None = None) -> tuple[Problem, ...]:
    with pytest.raises(ConfigurationError) as caught:
        read(text, environ)
    return caught.value.problems


def rule(when: str) -> str:
    """A rule whose condition stands in line 4."""
    return f"rules:\n  - name: a\n    when:\n      {when}\n"


# text, line, key, words of the message, words of the remedy
MISTAKES = {
    "unknown section": ("nod: {}\n", 1, "nod", "not known", "Did you mean node?"),
    "unknown key": ("node:\n  ae_titel: A\n", 2, "node.ae_titel", "not known", "Did you mean ae_title?"),
    "key of another section": ("port: 104\n", 1, "port", "not known", "It belongs under receive"),
    "key unlike any": ("study:\n  zzz: 1\n", 2, "study.zzz", "not known", "known here are quiet_seconds"),
    "AE title too long": (
        "node:\n  ae_title: SEVENTEEN_LETTERS\n", 2, "node.ae_title", "17 characters; PS3.5", "SEVENTEEN_LETTER",
    ),
    "AE title with backslash": ('node:\n  ae_title: "A\\\\B"\n', 2, "node.ae_title", "backslash", "1 to 16 ASCII"),
    "AE title of spaces": ('node:\n  ae_title: "  "\n', 2, "node.ae_title", "empty", "1 to 16 ASCII"),
    "AE title not ASCII": ("node:\n  ae_title: RÖNTGEN\n", 2, "node.ae_title", "'Ö'", "1 to 16 ASCII"),
    "AE title with control": ('node:\n  ae_title: "A\\tB"\n', 2, "node.ae_title", "control", "1 to 16 ASCII"),
    "AE title a number": ("node:\n  ae_title: 104\n", 2, "node.ae_title", "a number, not text", "in quotes"),
    "choice": ("node:\n  log_level: inf\n", 2, "node.log_level", "not one of", "Did you mean info?"),
    "port too large": ("receive:\n  port: 70000\n", 2, "receive.port", "out of range", "1 and at most 65,535"),
    "port zero": ("receive:\n  port: 0\n", 2, "receive.port", "out of range", "at least 1"),
    "number in quotes": (
        'receive:\n  max_pdu: "16384"\n', 2, "receive.max_pdu", "text, not a whole number", "without quotes",
    ),
    "number in words": (
        "study:\n  quiet_seconds: ten\n", 2, "study.quiet_seconds", "text, not a number", "Write a number",
    ),
    "fraction": ("receive:\n  port: 1.5\n", 2, "receive.port", "not a whole number", "whole number"),
    "boolean in words": (
        "receive:\n  check_called_ae: yes\n", 2, "receive.check_called_ae", "not true or false", "Write true or false",
    ),
    "no value": ("node:\n  ae_title:\n", 2, "node.ae_title", "no value is given", "quotes"),
    "section is a value": ("receive:\n  timeouts: 5\n", 2, "receive.timeouts", "not a section", "key: value"),
    "list is a value": ("infer:\n  providers: cpu\n", 2, "infer.providers", "text, not a list", "[a, b]"),
    "unknown provider": ("infer:\n  providers: [cdua]\n", 2, "infer.providers.0", "not one of", "Did you mean cuda?"),
    "path": ("node:\n  state_dir: [a]\n", 2, "node.state_dir", "not a path", "/var/lib"),
    "database": ("engine:\n  database: mysql://x\n", 2, "engine.database", "not the address", "postgresql://"),
    "callers checked, none known": (
        "receive:\n  check_calling_ae: true\n", 2, "receive.check_calling_ae", "names none", "receive.callers",
    ),
    "caller's host": (
        "receive:\n  callers:\n    - {ae_title: A, host: 'a b'}\n", 3, "receive.callers.0.host", "not a host", "192.0.2.10",
    ),
    "caller's port without a host": (
        "receive:\n  callers:\n    - {ae_title: A, port: 104}\n",
        3, "receive.callers.0.port", "no host", "Add host",
    ),
    "destination's name": ("destinations:\n  a/b: {type: folder, path: /a}\n", 2, "destinations.a/b", "letters", "Rename"),
    "destination of no type": ("destinations:\n  A: {path: /a}\n", 2, "destinations.A.type", "missing", "type: dicom"),
    "destination of unknown type": (
        "destinations:\n  A:\n    type: dicm\n", 3, "destinations.A.type", "not one of", "Did you mean dicom?",
    ),
    "destination is a value": ("destinations:\n  A: 5\n", 2, "destinations.A", "not a section", "key: value"),
    "key missing": ("destinations:\n  A: {type: folder}\n", 2, "destinations.A.path", "missing", "Add 'path: …'"),
    "key of another type": (
        "destinations:\n  A: {type: folder, path: /a, prot: 1}\n", 2, "destinations.A.prot", "not known", "path",
    ),
    "password in the file": (
        "destinations:\n  A: {type: stow, url: 'https://a', username: u, password_env: P, password: hunter2}\n",
        2, "destinations.A.password", "not known", "password_env with the name of an environment variable",
    ),
    "secret for its name": (
        "destinations:\n  A: {type: stow, url: 'https://a', token_env: 'a-b/c'}\n",
        2, "destinations.A.token_env", "not the name of an environment", "never the secret",
    ),
    "url": ("destinations:\n  A: {type: stow, url: 'ftp://a'}\n", 2, "destinations.A.url", "http", "http://host:8042"),
    "secret in a url": (
        "destinations:\n  A: {type: stow, url: 'https://u:hunter2@a'}\n", 2, "destinations.A.url", "password", "password_env",
    ),
    "user without password": (
        "destinations:\n  A: {type: stow, url: 'https://a', username: u}\n",
        2, "destinations.A.username", "no password", "password_env",
    ),
    "two ways to sign in": (
        "destinations:\n  A: {type: stow, url: 'https://a', username: u, password_env: P, token_env: T}\n",
        2, "destinations.A.token_env", "both", "Keep one",
    ),
    "folder that is to commit": (
        "destinations:\n  A: {type: folder, path: /a, commitment: true}\n",
        2, "destinations.A.commitment", "not known", "Remove it: only a destination of type dicom, or orthanc with",
    ),
    "STOW that is to commit": (
        "destinations:\n  A: {type: stow, url: 'https://a', commitment_timeout: 5}\n",
        2, "destinations.A.commitment_timeout", "not known", "Remove it: only a destination of type dicom",
    ),
    "Orthanc that is to commit by itself": (
        "destinations:\n  A: {type: orthanc, url: 'http://a', commitment: true}\n",
        2, "destinations.A.commitment", "cannot be asked to commit", "Name one of its modalities",
    ),
    "waits reversed": (
        "deliver:\n  retry:\n    first_seconds: 60\n    max_seconds: 5\n",
        3, "deliver.retry.first_seconds", "longer than", "at most max_seconds",
    ),
    "two rules of one name": (
        "rules:\n  - name: a\n    when: {Modality: CR}\n  - name: a\n", 4, "rules.1.name", "same name", "name of its own",
    ),
    "rule without a name": ("rules:\n  - tasks: []\n", 2, "rules.0.name", "missing", "Add 'name: …'"),
    "unknown task": (
        "rules:\n  - name: a\n    tasks: [bone_supression]\n",
        3, "rules.0.tasks.0", "not one of", "Did you mean bone_suppression?",
    ),
    "task twice": ("rules:\n  - name: a\n    tasks: [anomaly, anomaly]\n", 3, "rules.0.tasks.1", "twice", "Remove one"),
    "unknown destination": (
        "destinations:\n  PACS: {type: folder, path: /a}\nrules:\n  - name: a\n    destinations:\n      - PACKS\n",
        6, "rules.0.destinations.0", "no destination of this name", "Did you mean PACS?",
    ),
    "no destinations at all": (
        "rules:\n  - name: a\n    destinations: [PACS]\n", 3, "rules.0.destinations.0", "no destination", "Add it under",
    ),
    "unknown keyword": (
        rule("BodyPartExamind: CHEST"), 4, "rules.0.when.BodyPartExamind", "DICOM keyword", "BodyPartExamined?",
    ),
    "keyword unlike any": (rule("qqqqqqqq: 1"), 4, "rules.0.when.qqqqqqqq", "DICOM keyword", "PS3.6"),
    "calling AE misspelt": (rule("callingae: A"), 4, "rules.0.when.callingae", "DICOM keyword", "calling_ae?"),
    "sequence": (rule("ViewCodeSequence: A"), 4, "rules.0.when.ViewCodeSequence", "a sequence", "plain value"),
    "binary": (rule("ICCProfile: A"), 4, "rules.0.when.ICCProfile", "binary", "plain value"),
    "bad pattern": (
        rule("StudyDescription: {pattern: '('}"), 4, "rules.0.when.StudyDescription.pattern", "regular expression", "backslash",
    ),
    "pattern that explodes": (
        rule("StudyDescription: {pattern: '(a+)+b'}"), 4, "rules.0.when.StudyDescription.pattern", "very long time", "repetition",
    ),
    "pattern on a number": (rule("Rows: {pattern: a}"), 4, "rules.0.when.Rows.pattern", "not text", "range"),
    "range reversed": (
        rule("PatientAge: {range: [80, 40]}"), 4, "rules.0.when.PatientAge.range", "reversed", "[40, 80]",
    ),
    "range reversed in dates": (
        rule("StudyDate: {range: ['2026-02-01', '20260131']}"), 4, "rules.0.when.StudyDate.range", "reversed", "20260131",
    ),
    "range of one": (rule("Rows: {range: [80]}"), 4, "rules.0.when.Rows.range", "two values", "[40, 80]"),
    "range open": (rule("Rows: {range: [null, null]}"), 4, "rules.0.when.Rows.range", "both sides", "present: true"),
    "range of text": (rule("Modality: {range: [A, B]}"), 4, "rules.0.when.Modality.range", "text", "one_of"),
    "text where a number is": (rule("Rows: many"), 4, "rules.0.when.Rows", "a number", "Give a number"),
    "no age": (rule("PatientAge: old"), 4, "rules.0.when.PatientAge", "age", "years"),
    "no date": (rule("StudyDate: '20261399'"), 4, "rules.0.when.StudyDate", "date", "2026-01-31"),
    "no time": (rule("StudyTime: {range: ['25:00', null]}"), 4, "rules.0.when.StudyTime.range.0", "time", "08:30"),
    "number where text is": (rule("PatientID: 0012"), 4, "rules.0.when.PatientID", "YAML reads", "in quotes"),
    "boolean where text is": (rule("PatientSex: true"), 4, "rules.0.when.PatientSex", "YAML reads", "in quotes"),
    "one of several": (rule("Rows: [1, x]"), 4, "rules.0.when.Rows.1", "a number", "Give a number"),
    "no value to compare": (rule("Modality:"), 4, "rules.0.when.Modality", "no value", "a list"),
    "empty value": (rule("Modality: ''"), 4, "rules.0.when.Modality", "empty", "present: false"),
    "empty list": (rule("Modality: []"), 4, "rules.0.when.Modality", "nothing in it", "Give a value"),
    "empty condition": (rule("Modality: {}"), 4, "rules.0.when.Modality", "says nothing", "equals"),
    "unknown operator": (rule("Modality: {equal: CR}"), 4, "rules.0.when.Modality.equal", "not known", "equals?"),
    "operator in not": (rule("Modality: {not: {equal: CR}}"), 4, "rules.0.when.Modality.not.equal", "not known", "equals?"),
    "value in not": (rule("Rows: {not: [1, x]}"), 4, "rules.0.when.Rows.not.1", "a number", "Give a number"),
    "list as a value": (rule("Rows: {equals: [1]}"), 4, "rules.0.when.Rows.equals", "a list", "plain value"),
    "tab": ("node:\n\tae_title: A\n", 2, "(YAML)", "tab", "spaces"),
    "not YAML": ("node:\n  ae_title: [A\nreceive: {}\n", 3, "(YAML)", "not YAML", "this line and the one above"),
    "key twice": ("node:\n  ae_title: A\n  ae_title: B\n", 3, "ae_title", "twice", "Remove one"),
    "section twice": ("node: {}\nreceive: {}\nnode: {}\n", 3, "node", "twice", "Remove one"),
    "rule of one keyword twice": (
        rule("Modality: CR\n      Modality: DX"), 5, "Modality", "twice", "Remove one",
    ),
    "empty file": ("# nothing\n", 1, "(whole file)", "empty", "node:"),
    "a list": ("- a\n", 1, "(whole file)", "not a list of keys", "node:"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str) -> None:
    text, line, key, message, remedy = MISTAKES[name]
    found = problems(text)
    assert len(found) == 1, [str(p) for p in found]
    problem = found[0]
    assert (problem.file, problem.line, problem.key) == ("pacs-node.yaml", line, key)
    assert problem.column is not None
    assert problem.column >= 1
    assert message in problem.message
    assert remedy in problem.remedy
    assert "hunter2" not in str(problem)
    for word in ("pydantic", "Input should", "dict", "str ", "tuple", "model_type"):
        assert word not in str(problem), "the administrator's words"
    assert f"pacs-node.yaml:{line}:" in str(problem)


def test_all_mistakes_in_one_pass_in_the_order_of_lines() -> None:
    text = (
        "node:\n  ae_title: SEVENTEEN_LETTERS\nreceive:\n  port: 70000\n"
        "destinations:\n  PACS: {type: dicom, ae_title: PACS, host: a, prot: 104}\n"
        "rules:\n  - name: a\n    when: {Modalty: CR, PatientAge: {range: [2, 1]}}\n    tasks: [x]\n"
        "    destinations: [NOWHERE]\n  - name: a\n"
    )
    found = problems(text)
    assert [(p.line, p.key) for p in found] == [
        (2, "node.ae_title"),
        (4, "receive.port"),
        (6, "destinations.PACS.port"),
        (6, "destinations.PACS.prot"),
        (9, "rules.0.when.Modalty"),
        (9, "rules.0.when.PatientAge.range"),
        (10, "rules.0.tasks.0"),
        (11, "rules.0.destinations.0"),
        (12, "rules.1.name"),
    ]
    assert [p.value for p in found[:2]] == ["SEVENTEEN_LETTERS", "70000"]
    assert str(ConfigurationError(found)).count("\n") == len(found) - 1


def test_eight_lines_are_enough() -> None:
    config = read(MINIMAL)
    assert config.node.ae_title == "PACS_NODE"
    assert config.receive.port == 11112
    assert config.rules[0].tasks == tuple(Task)
    assert config.rules[0].when["Modality"].one_of == ("CR", "DX")
    assert config.study.quiet_seconds == 30
    assert config.models.name_for(Task.ANOMALY) is None


def test_outer_spaces_of_an_ae_title_do_not_count() -> None:
    assert read('node: {ae_title: " NODE  "}').node.ae_title == "NODE"


def test_sections_whose_lines_are_all_comments_are_as_if_left_out() -> None:
    assert read("engine:\n  # database: x\nrules:\ninfer:\n  steps:\ndestinations:\n") == Config()


def test_relative_paths_begin_at_the_folder_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "pacs-node.yaml"
    file.write_text("node: {state_dir: state}\nmodels: {folders: [models]}\n")
    config = load(file, {})
    assert config.node.state_dir == tmp_path / "state"
    assert config.models.folders == (tmp_path / "models",)


def test_environment_wins_and_its_problems_name_the_variable() -> None:
    environ = {
        "PACS_NODE_STATE_DIR": "/srv/state",
        "PACS_NODE_PORT": "4104",
        "PACS_NODE_HOST": "127.0.0.1",
        "PACS_NODE_MODELS": "/a:/b",
        "PACS_NODE_DATABASE": "postgresql://node@db/jobs",
    }
    config = read(MINIMAL, environ)
    assert config.node.state_dir == Path("/srv/state")
    assert (config.receive.host, config.receive.port) == ("127.0.0.1", 4104)
    assert config.models.folders == (Path("/a"), Path("/b"))
    assert config.engine.database == "postgresql://node@db/jobs"
    (problem,) = problems(MINIMAL, {"PACS_NODE_PORT": "http"})
    assert problem.file == "environment variable PACS_NODE_PORT"
    assert (problem.line, problem.key, problem.value) == (None, "receive.port", "http")
    (problem,) = problems(MINIMAL, {"PACS_NODE_DATABASE": "mysql://node:hunter2@db"})
    assert "hunter2" not in str(problem)


def test_a_model_built_by_hand_is_checked_too() -> None:
    with pytest.raises(ValueError, match="no destination of this name"):
        Config.model_validate({"rules": [{"name": "a", "destinations": ["PACS"]}]})


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    def only_problem(path: Path) -> Problem:
        with pytest.raises(ConfigurationError) as caught:
            load(path, {})
        (problem,) = caught.value.problems
        assert problem.file == str(path)
        return problem

    assert "no such file" in only_problem(tmp_path / "absent.yaml").message
    assert "cannot be read" in only_problem(tmp_path).message
    (tmp_path / "large.yaml").write_text("#" * 300_000)
    assert "larger than 256 KiB" in only_problem(tmp_path / "large.yaml").message
    (tmp_path / "latin.yaml").write_bytes("node: {}\n# Röntgen\n".encode("latin-1"))
    problem = only_problem(tmp_path / "latin.yaml")
    assert (problem.line, problem.remedy) == (2, "Save it as UTF-8")
    (tmp_path / "deep.yaml").write_text("[" * 1000)
    assert "deep" in only_problem(tmp_path / "deep.yaml").message
    aliases = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    (tmp_path / "bomb.yaml").write_text(aliases)
    assert "unfold to too much" in only_problem(tmp_path / "bomb.yaml").message


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MINIMAL, encoding="utf-8-sig")
    assert load(tmp_path / "a.yaml", {}).rules[0].name == "chest"


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["pacs_node.config.load"], "SYSTEM_FILE", tmp_path / "etc.yaml")
    with pytest.raises(ConfigurationError) as caught:
        locate(None, {})
    assert "check --example" in caught.value.problems[0].remedy
    (tmp_path / "etc.yaml").touch()
    assert locate(None, {}) == tmp_path / "etc.yaml"
    (tmp_path / "pacs-node.yaml").touch()
    assert locate(None, {}) == Path("pacs-node.yaml")
    assert locate(None, {"PACS_NODE_CONFIG": "/a.yaml"}) == Path("/a.yaml")
    assert locate(Path("b.yaml"), {"PACS_NODE_CONFIG": "/a.yaml"}) == Path("b.yaml")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_damaged_file_gives_problems_and_never_another_error(data: st.DataObject) -> None:
    lines = EXAMPLE.read_text().splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        junk = data.draw(
            st.text(max_size=12) | st.sampled_from(["[", "{", "- a", "&a *a", "x: y", "  ", "null"])
        )
        cut = data.draw(st.integers(0, len(lines[at])))
        lines[at] = lines[at][:cut] + junk + lines[at][data.draw(st.integers(cut, len(lines[at]))) :]
    found: tuple[Problem, ...] = ()
    try:
        read("\n".join(lines))
    except ConfigurationError as error:
        found = error.problems or (Problem("", None, None, "", "", "", ""),)
    assert all(p.message and p.remedy and "Input should" not in p.message for p in found)

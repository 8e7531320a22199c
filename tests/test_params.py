"""params.yaml, profiles and overrides: typed, frozen, and wrong ones refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from flywheel.params import Params, reference
from flywheel.params import file as params_file
from flywheel.params.errors import either
from flywheel.params.file import ParamsError
from flywheel.params.sections import Choices, PerArchitecture, Range, parse_domain

ROOT = Path(__file__).parents[1]

Make = Callable[..., Params]


def test_each_shipped_profile_is_valid_and_has_its_own_store_and_reports(make_params: Make) -> None:
    profiles = [make_params(profile=name) for name in ("cifar10", "laptop", "demo")]
    assert [params.profile for params in profiles] == ["cifar10", "laptop", "demo"]
    assert len({params.store for params in profiles}) == len({params.reports for params in profiles}) == 3


def test_several_reasons_are_one_sentence_and_each_stands_there_once() -> None:
    assert either(["must be 'auto'", "must be a number", "must be 'auto'"]) == "must be 'auto', or must be a number"


def test_params_are_frozen(params: Params) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        params.sweep.trials = 3  # type: ignore[misc]


def test_a_profile_overrides_the_file_and_set_overrides_both(make_params: Make) -> None:
    assert make_params(profile="cifar10").data.source == "cifar10"
    assert make_params(profile="demo").data.source == "digits"
    changed = make_params("sweep.trials=3 sweep.epochs=2 recipe.learning_rate=1e-3")
    assert (changed.sweep.trials, changed.sweep.epochs, changed.recipe.learning_rate) == (3, 2, 0.001)
    assert changed.data.source == "digits"


def test_set_takes_yaml_values_with_spaces(make_params: Make) -> None:
    before = make_params().sweep.space
    changes = "sweep.space.batch_size=[16, 32] sweep.space.learning_rate={uniform: [0.1, 0.2]} sweep.trials=5"
    made = make_params(changes).sweep
    changed = {"batch_size": Choices((16, 32)), "learning_rate": Range(0.1, 0.2, log=False)}
    assert dict(made.space) == {**before, **changed}  # a range replaces a range, and the rest of the space stays
    assert made.trials == 5
    assert make_params("sweep.space.momentum={log_uniform: [0.001, 0.1]}").sweep.space["momentum"] == Range(
        0.001, 0.1, log=True
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("sweep.trails=3", "SET: sweep.trails: unknown key; did you mean sweep.trials?"),
        ("swep.trials=3", "swep: unknown key; did you mean sweep?"),
        ("sweep.trials=0", "sweep.trials: must be greater than or equal to 1 (got 0)"),
        ("sweep.trials=many", "sweep.trials: must be a valid integer (got 'many')"),
        ("sweep.trials=true", "sweep.trials: must be a valid integer (got True)"),
        ("data.drift.noise=9", "data.drift.noise: must be less than or equal to 5 (got 9)"),
        ("data.source=mnist", "data.source: must be 'cifar10', 'folder'"),
        ("data.source=folder", "source folder needs data.path"),
        ("data.path=/somewhere", "SET: data.path: is read by source folder"),
        ("data.name=My_Shapes", "data.name: must be lower-case letters, digits and hyphens (got 'My_Shapes')"),
        ("profile.x=1", "SET: profile: unknown key; PROFILE=name chooses a profile"),
        ("sweep.searcher=gp", "needs sweep.early_stopping=false"),
        (
            "sweep.space.learning_rat=3",
            "sweep.space.learning_rat: unknown key; did you mean sweep.space.learning_rate?",
        ),
        ("sweep.space.batch_size=[64.5]", "sweep.space.batch_size: must be a valid integer (got 64.5)"),
        ("sweep.space.learning_rate={log_uniform: [1, 0]}", "two numbers, the lower first"),
        ("sweep.space.learning_rate={log_uniform: [0, 1]}", "lower bound above 0"),
        ("sweep.space.learning_rate={uniform: [0.1, 99]}", "must be less than or equal to 10 (got 99)"),
        (
            "sweep.space.weight_decay={uniform: [0.0, 5]}",
            "sweep.space.weight_decay: must be 'auto' (got 5), or must be less than or equal to 1 (got 5)",
        ),
        ("sweep.initial_trials=[{weight_decay: 5}]", "or must be less than or equal to 1 (got 5)"),
        ("sweep.initial_trials=[{learning_rate: 5}]", "[0].learning_rate: 5 is outside sweep.space.learning_rate"),
        ("sweep.initial_trials=[{rate: 5}]", "sweep.initial_trials[0].rate: unknown key"),
        ("recipe.architecture=resnet", "recipe.architecture: must be 'standard', 'upsample', 'modified'"),
        ("sweep.space.architecture=[compakt]", "sweep.space.architecture: must be 'standard'"),
        ("sweep.space.architecture={uniform: [0, 1]}", "must be a list of standard, upsample"),
        ("sweep.space.momentum={per_architecture: {compakt: 0.5}}", "did you mean compact?"),
        ("tracking.registry=foo", "tracking.registry: must be wandb-registry-<registry>/<collection> (got 'foo')"),
        ("sweep.gpus_per_trial=1.5", "must be a fraction below 1 or a whole number (got 1.5)"),
        ("sweep.trials=[3", "SET: sweep.trials: '[3' is not a YAML value"),
        ("sweep.learning_rate=3", "SET: sweep.learning_rate: unknown key; did you mean recipe.learning_rate?"),
        ("sweep.space.zzz=3", "SET: sweep.space.zzz: unknown key; valid keys: architecture, batch_size"),
        ("sweep.initial_trials=[{momentum: 2}]", "SET: sweep.initial_trials[0].momentum: must be less than 1 (got 2)"),
        ("sweep.initial_trials=[3]", "SET: sweep.initial_trials[0]: must be a mapping of keys to values (got 3)"),
        ("sweep.initial_trials=3", "SET: sweep.initial_trials: must be a list (got 3)"),
        ("data.drift=3", "SET: data.drift: must be a mapping of keys to values (got 3)"),
        ("data={}", "SET: 'data={}' is not of the form section.key=value"),
        ("sweep.space.learning_rate={uniform: [0, .inf]}", "sweep.space.learning_rate: uniform must be two numbers"),
        ("sweep.trials=*x", "SET: sweep.trials: '*x' is not a YAML value"),
        ("tracking.wandb=off", "SET: tracking.wandb: YAML reads off and on as false and true; write disabled, offline"),
        ("tracking.wandb=on", "SET: tracking.wandb: YAML reads off and on as false and true; write disabled, offline"),
        ("paths.store=", "SET: paths.store: must be a valid string (got None)"),
        ("paths.store=~nobody-here/x", "SET: paths.store: there is no home directory of ~nobody-here"),
        ("data.path=~nobody-here/x", "SET: data.path: there is no home directory of ~nobody-here"),
        ('paths.store="a\\0b"', "SET: paths.store: must be text that can be shown (got 'a\\x00b')"),
    ],
)
def test_a_mistake_is_one_line_with_the_keys_path(make_params: Make, overrides: str, message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        make_params(overrides)
    text = str(caught.value)
    assert message in text
    assert "\n" not in text


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(ParamsError, match="'trials' is not of the form"):
        params_file.load(ROOT / "params.yaml", "demo", "trials")


def test_an_unknown_profile_names_those_there_are(make_params: Make) -> None:
    with pytest.raises(ParamsError, match="PROFILE=dmo: unknown profile; choose one of cifar10, laptop, demo"):
        make_params(profile="dmo")


def test_every_mistake_has_its_line(make_params: Make) -> None:
    with pytest.raises(ParamsError) as caught:
        make_params("sweep.trials=0 sweep.epochs=0")
    assert len(str(caught.value).splitlines()) == 2


def test_a_mistake_is_reported_with_its_origin(tmp_path: Path) -> None:
    """The file, the profile, or SET: the last override that touched the key."""
    path = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    path.write_text(text.replace("  trials: 24", "  trials: 0").replace("      epochs: 12", "      epochs: 0"))
    cases = {
        ("cifar10", ""): f"{path}: sweep.trials: must be greater than or equal to 1 (got 0)",
        ("demo", ""): f"{path}: profiles.demo.sweep.epochs: must be greater than or equal to 1 (got 0)",
        ("demo", "sweep.epochs=-1"): "SET: sweep.epochs: must be greater than or equal to 1 (got -1)",
        ("cifar10", "sweep.trials=-1"): "SET: sweep.trials: must be greater than or equal to 1 (got -1)",
        ("cifar10", "sweep.epochs=1"): f"{path}: sweep.trials: must be greater than or equal to 1 (got 0)",
    }
    for (profile, overrides), message in cases.items():
        with pytest.raises(ParamsError) as caught:
            params_file.load(path, profile, overrides)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("section", "key", "former", "message"),
    [
        ("sweep", "initial_trials: [{}]", "first: [{}]", "sweep.first: is now sweep.initial_trials"),
        (
            "evaluate",
            "",
            "test_time_augmentation: true",
            "evaluate: was removed with its only param, test_time_augmentation; delete it",
        ),
    ],
)
def test_renamed_and_removed_keys_are_refused_with_the_replacement(
    tmp_path: Path, section: str, key: str, former: str, message: str
) -> None:
    """In the file, in a profile and in SET."""
    text, path = (ROOT / "params.yaml").read_text(), tmp_path / "params.yaml"
    in_file = text.replace(f"  {key} ", f"  {former} ") if key else f"{section}: {{{former}}}\n{text}"
    in_profile = text.replace("  cifar10: {}", f"  cifar10: {{{section}: {{{former}}}}}")
    in_set = f"{section}.{former.replace(': ', '=')}"
    for content, overrides, origin in (
        (in_file, "", f"{path}: "),
        (in_profile, "", f"{path}: profiles.cifar10."),
        (text, in_set, "SET: "),
    ):
        path.write_text(content)
        with pytest.raises(ParamsError) as caught:
            params_file.load(path, overrides=overrides)
        assert str(caught.value) == f"{origin}{message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:\n  name: a\n  name: b\nprofiles: {p: {}}", r"params.yaml:3: not valid YAML: name occurs twice"),
        ("data: [", r"params.yaml:1: not valid YAML"),
        ("data:\n\tname: 3", r"params.yaml:2: not valid YAML"),
        ('data: {}\nsweep: "open\n', r"params.yaml:3: not valid YAML"),
        ("data: {}\nsweep: \x07\n", r"params.yaml:2: not valid YAML: a control character"),
        ("a: &a [1]\nb: *a", r"params.yaml:2: not valid YAML: \*a: aliases are not read; write the value out"),
        ("a: &a [*a]", r"params.yaml:1: not valid YAML: \*a: aliases are not read"),
        ("a: 3\nb: 2026-13-45", r"params.yaml:2: not valid YAML: month must be in 1..12"),
        ("a: " + "9" * 5_000, r"params.yaml:1: not valid YAML: Exceeds the limit"),
        ("a: " + "[" * 5_000 + "]" * 5_000, r"params.yaml:1: not valid YAML: nested too deeply"),
        ("a: !!python/object:os.system x", r"params.yaml:1: not valid YAML"),
        ("", "must be a mapping"),
        ("- 1", "must be a mapping"),
        ("data: {}", "profiles: must name at least one profile"),
        ("profiles: {p: 3}", r"profiles.p: must be a mapping of keys to values \(got 3\)"),
        ("profiles: {p: {sweep: 3}}", r"params.yaml: profiles.p.sweep: must be a mapping"),
        ("sweep: 3\nprofiles: {p: {sweep: {trials: 1}}}", r"params.yaml: sweep: must be a mapping"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=message) as caught:
        params_file.load(tmp_path / "params.yaml", "p")
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("  validation_fraction: 0.1", "  # validation_fraction: 0.1")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=r"data\.validation_fraction: is missing"):
        params_file.load(tmp_path / "params.yaml", "cifar10")


def test_a_missing_file_says_where_to_run() -> None:
    with pytest.raises(ParamsError, match="run from the repository's root"):
        params_file.load("nowhere/params.yaml", "demo")


def test_identity_leaves_out_what_does_not_change_the_result(make_params: Make) -> None:
    base = make_params()
    for changes, overrides in (
        (False, "sweep.trials=99 sweep.max_concurrent_trials=1 sweep.gpus_per_trial=0 paths.cache=/elsewhere"),
        *(
            (True, one)
            for one in ("sweep.epochs=99", "data.seed=1", "sweep.space.batch_size=[7]", "data.drift.noise=1")
        ),
    ):
        other = make_params(overrides)
        same = (other.sweep.identity(), other.data.identity()) == (base.sweep.identity(), base.data.identity())
        assert same != changes


def test_a_domain_per_architecture_falls_back_to_others() -> None:
    domain = parse_domain({"per_architecture": {"upsample": [16, 32], "others": {"uniform": [64, 256]}}})
    assert isinstance(domain, PerArchitecture)
    assert domain.of("upsample") == Choices((16, 32))
    assert domain.of("standard") == Range(64.0, 256.0, log=False)


def test_the_reference_page_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "params.md").read_text() == reference.page(ROOT / "params.yaml"), "run make docs"


def test_every_param_has_a_description() -> None:
    rows = [line for line in reference.page(ROOT / "params.yaml").splitlines() if line.startswith("| `")]
    assert len(rows) > 40
    assert all(row.rstrip(" |").rsplit("|", 1)[-1].strip() for row in rows)

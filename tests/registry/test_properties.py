"""The registry against a model of it in memory, over random sequences of changes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flywheel.registry import Registry, RegistryError, Version
from flywheel.registry.audit import MODEL_ALIASES

NAMES = st.sampled_from(["data", "model-1"])
MODELS = st.sampled_from(["classifier", "other"])
CONTENTS = st.dictionaries(st.sampled_from(["a", "sub/b"]), st.sampled_from(["", "one", "two"]), min_size=1)
ALIASES = st.lists(st.sampled_from(MODEL_ALIASES), max_size=3).map(tuple)


class RegistryMachine(RuleBasedStateMachine):
    """Publish, link and remove in the registry and in a model made of lists and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="registry-properties-"))
        self.registry = Registry(self.folder / "store")
        self.sources = 0
        self.versions: dict[str, list[Version]] = {}  # by name, oldest first
        self.contents: dict[str, dict[str, str]] = {}  # by label
        self.refs: dict[tuple[str, frozenset[tuple[str, str]]], str] = {}  # of all content there ever was
        self.latest: dict[str, Version] = {}
        self.next_number: dict[str, int] = {}
        self.aliases: dict[str, dict[str, str]] = {}
        self.links: dict[str, list[str]] = {}
        self.history: list[dict[str, Any]] = []

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def chosen(self, data: st.DataObject) -> Version:
        return data.draw(
            st.sampled_from([version for name in sorted(self.versions) for version in self.versions[name]])
        )

    def some_version(self) -> bool:
        return any(self.versions.values())

    @rule(name=NAMES, contents=CONTENTS, data=st.data(), metadata=st.sampled_from([None, {"key": 1}]))
    def publish(self, name: str, contents: dict[str, str], data: st.DataObject, metadata: Any) -> None:
        inputs = {"from": (self.chosen(data).ref,)} if self.some_version() else {}
        folder = self.folder / f"in-{self.sources}"
        self.sources += 1
        for path, text in contents.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        version = self.registry.publish(name, "test", folder, metadata=metadata, inputs=inputs)

        known = next((v for v in self.versions.get(name, []) if self.contents[v.label] == contents), None)
        if known is None:
            assert version.number == self.next_number.get(name, 0)
            assert (version.inputs, version.metadata) == (inputs, metadata or {})
            self.next_number[name] = version.number + 1
            self.versions.setdefault(name, []).append(version)
            self.contents[version.label] = contents
        else:
            assert version == known
        assert self.refs.setdefault((name, frozenset(contents.items())), version.ref) == version.ref
        assert len(set(self.refs.values())) == len(self.refs)
        self.latest[name] = version

    @precondition(some_version)
    @rule(data=st.data(), model=MODELS, aliases=ALIASES, reason=st.sampled_from(["x", 'a "ü\u2028\n']))
    def link(self, data: st.DataObject, model: str, aliases: tuple[str, ...], reason: str) -> None:
        version, before = self.chosen(data), self.aliases.get(model, {})
        expected = data.draw(st.sampled_from([None, before]))
        self.registry.link(version, model, aliases, reason=reason, expected=expected)

        after = before | dict.fromkeys(aliases, version.ref)  # previous is what production was, whatever else moves
        if "production" in aliases and before.get("production", version.ref) != version.ref:
            after["previous"] = before["production"]
        moved = {alias: ref for alias, ref in after.items() if before.get(alias) != ref}
        linked = self.links.setdefault(model, [])
        records = [{"alias": alias, "from": before.get(alias), "to": ref} for alias, ref in moved.items()]
        if not records and version.ref not in linked:
            records = [{"alias": None, "from": None, "to": version.ref}]
        written = self.registry.history()[len(self.history) :]
        key = ("alias", "from", "to")
        assert sorted(({k: entry[k] for k in key} for entry in written), key=str) == sorted(records, key=str)
        for entry in written:
            assert (entry["model"], entry["reason"], entry["forced"], entry["gate"]) == (model, reason, False, None)
        self.history += written
        self.aliases[model] = after
        linked += [ref for ref in dict.fromkeys(entry["to"] for entry in written) if ref not in linked]

    @precondition(some_version)
    @rule(data=st.data(), model=MODELS, aliases=ALIASES, alias=st.sampled_from(MODEL_ALIASES))
    def link_too_late(self, data: st.DataObject, model: str, aliases: tuple[str, ...], alias: str) -> None:
        """An alias is not where the caller saw it: nothing moves."""
        expected = {alias: None if alias in self.aliases.get(model, {}) else "data@0123"}
        with pytest.raises(RegistryError, match="moved meanwhile"):
            self.registry.link(self.chosen(data), model, aliases, reason="late", expected=expected)

    @precondition(some_version)
    @rule(data=st.data())
    def set_latest(self, data: st.DataObject) -> None:
        version = self.chosen(data)
        self.registry.set_latest(version)
        self.latest[version.name] = version

    @precondition(some_version)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Versions that were ever linked stay, as they do when pruning."""
        linked = {ref for refs in self.links.values() for ref in refs}
        chosen = {version.label: version for version in (self.chosen(data), self.chosen(data))}
        removed = [version for version in chosen.values() if version.ref not in linked]
        self.registry.remove(removed)
        for version in removed:
            self.versions[version.name].remove(version)
        for name, version in self.latest.items():
            if version in removed and self.versions[name]:
                self.latest[name] = self.versions[name][-1]

    @rule()
    def reopen(self) -> None:
        self.registry = Registry(self.folder / "store")

    @invariant()
    def every_version_is_complete(self) -> None:
        assert self.registry.collections() == sorted(name for name, versions in self.versions.items() if versions)
        for name, versions in self.versions.items():
            assert self.registry.versions(name) == versions
            for version in versions:
                folder = self.registry.open(version)
                found = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}
                assert found == self.contents[version.label]
                assert self.registry.resolve(version.label) == self.registry.resolve(version.ref) == version

    @invariant()
    def latest_is_the_version_published_or_set_last(self) -> None:
        for name, versions in self.versions.items():
            if versions:
                assert self.registry.resolve(name) == self.registry.resolve(f"{name}:latest") == self.latest[name]

    @invariant()
    def aliases_point_where_they_were_moved(self) -> None:
        assert self.registry.registered_models() == sorted(model for model, links in self.links.items() if links)
        for model, links in self.links.items():
            assert self.registry.aliases(model) == self.aliases[model]
            for alias, ref in self.aliases[model].items():
                assert self.registry.resolve(f"{model}:{alias}").ref == ref
            for number, ref in enumerate(links):
                assert self.registry.resolve(f"{model}:v{number}").ref == ref
        for version in (version for versions in self.versions.values() for version in versions):
            pointing = [f"{m}:{a}" for m in self.aliases for a, ref in self.aliases[m].items() if ref == version.ref]
            latest = ["latest"] if self.latest[version.name] == version else []
            assert sorted(self.registry.aliases_by_ref().get(version.ref, [])) == sorted(latest + pointing)

    @invariant()
    def history_is_complete_and_each_move_starts_where_the_last_one_ended(self) -> None:
        assert self.registry.history() == self.history
        where: dict[tuple[str, str], str] = {}
        for entry in self.history:
            if entry["alias"]:
                assert entry["from"] == where.get((entry["model"], entry["alias"]))
                where[entry["model"], entry["alias"]] = entry["to"]


RegistryMachine.TestCase.settings = settings(
    max_examples=50,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
test_random_sequences_of_changes_agree_with_the_model = RegistryMachine.TestCase

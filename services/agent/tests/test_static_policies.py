"""Policies from a folder, beside those of the store, with the real engine."""

import asyncio

import pytest
import yaml
from cilium_agent.staticpolicies import StaticPolicies
from cilium_core.policy import PolicyRef

from services.agent.tests.benches import REF, Bench, policy

CNP, CCNP = "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"
IN_FILE = PolicyRef(CNP, "shop", "p (web.yaml)")


class Node(Bench):
    """A node with a folder of policies."""

    def __init__(self, path):
        super().__init__(path / "accepted")
        self.folder = path / "static"
        self.files = StaticPolicies(self.folder, self.policies, self.policies.accepted_earlier)

    def put(self, file, *objects):
        """Put a file in place, as a whole."""
        text = "---\n".join(o if isinstance(o, str) else yaml.safe_dump(o) for o in objects)
        (self.folder / "new").write_text(text)
        (self.folder / "new").replace(self.folder / file)

    async def start(self):
        await self.files.load()
        await self.policies.reconcile()

    async def follow(self):
        for _ in range(2):
            await self.files.reconcile()
        await self.policies.reconcile()

    @property
    def names(self):
        return {policy.ref for policy in self.policies.engine.repository}

    @property
    def refused(self):
        return {ref: refused.error for ref, refused in self.policies.refused.items()}


@pytest.fixture
def node(tmp_path):
    (tmp_path / "static").mkdir()
    return Node(tmp_path)


def from_cidr(cidr="192.0.2.0/24", **metadata):
    made = policy(fromCIDR=[cidr])
    made["metadata"].update(metadata)
    return made


async def test_files_are_enforced_from_the_start_and_followed(node):
    node.put("web.yaml", from_cidr(), from_cidr(name="q"))
    await node.start()
    assert node.names == {IN_FILE, IN_FILE._replace(name="q (web.yaml)")}
    node.put("web.yaml", from_cidr("198.51.100.0/24"))
    await node.follow()
    assert node.names == {IN_FILE}
    assert node.ipcache.get("198.51.100.0/24")
    assert node.ipcache.get("192.0.2.0/24") is None
    (node.folder / "web.yaml").unlink()
    await node.follow()
    assert node.names == set()


async def test_an_object_without_namespace_is_for_all_of_them(node):
    cnp = from_cidr()
    del cnp["metadata"]["namespace"]
    node.put("web.yaml", cnp)
    await node.start()
    assert node.names == {PolicyRef(CCNP, "", "p (web.yaml)")}


async def test_rules_say_which_file_they_are_from(node):
    node.put("web.yaml", from_cidr())
    await node.start()
    (rule,) = node.policies.engine.repository.get(IN_FILE).rules
    assert rule.ref == IN_FILE
    assert "directory:io.cilium.k8s.policy.name=p" in rule.origin.labels
    assert "directory:filename=web.yaml" in rule.origin.labels
    assert not [label for label in rule.origin.labels if label.startswith("k8s:")]


async def test_files_and_the_store_never_replace_each_others_policies(node):
    node.put("a.yaml", from_cidr())
    node.put("b.yaml", from_cidr("198.51.100.0/24"))
    node.policies.upsert_object(REF, from_cidr("203.0.113.0/24"))
    await node.start()
    assert {ref.name for ref in node.names} == {"p", "p (a.yaml)", "p (b.yaml)"}
    node.policies.delete_object(REF)
    (node.folder / "a.yaml").unlink()
    await node.follow()
    assert {ref.name for ref in node.names} == {"p (b.yaml)"}


BROKEN = {
    "no YAML": "a: [",
    "a name twice": yaml.safe_dump(from_cidr()) + "---\n" + yaml.safe_dump(from_cidr()),
    "another kind": yaml.safe_dump({"kind": "Pod", "metadata": {"name": "x"}}),
    "no name": yaml.safe_dump({"kind": CNP, "metadata": {}}),
    "no metadata": yaml.safe_dump({"kind": CNP}),
    "a namespace too many": yaml.safe_dump({**from_cidr(), "kind": CCNP}),
    "a namespace missing": yaml.safe_dump({"kind": "NetworkPolicy", "metadata": {"name": "x"}}),
    "no text": b"\xff\xfe",
    "too large": b" " * (1 << 21) + b" ",
    "no JSON": yaml.safe_dump({**from_cidr(), "x": float("nan")}),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
async def test_a_file_that_cannot_be_read_is_told_and_what_it_held_stays(node, content):
    node.put("web.yaml", from_cidr())
    await node.start()
    broken = content if isinstance(content, bytes) else content.encode()
    (node.folder / "web.yaml").write_bytes(broken)
    await node.follow()
    assert node.names == {IN_FILE}
    assert node.refused.keys() == {IN_FILE, PolicyRef("File", "", str(node.folder / "web.yaml"))}
    assert all("web.yaml" in error for error in node.refused.values())
    node.put("web.yaml", from_cidr())
    await node.follow()
    assert (node.names, node.refused) == ({IN_FILE}, {})


async def test_a_file_refused_from_the_start_is_told_until_it_goes(node):
    node.put("web.yaml", "a: [")
    await node.start()
    assert len(node.refused) == 1
    (node.folder / "web.yaml").unlink()
    await node.follow()
    assert node.refused == {}


async def test_an_invalid_policy_of_a_file_leaves_its_earlier_version_and_the_others(node):
    node.put("web.yaml", from_cidr())
    await node.start()
    node.put("web.yaml", policy(fromNobody=[]), from_cidr(name="q"))
    await node.follow()
    assert {ref.name for ref in node.names} == {"p (web.yaml)", "q (web.yaml)"}
    assert "fromNobody" in node.refused[IN_FILE]


@pytest.mark.parametrize("broken", ["file", "folder", "link"])
async def test_what_was_accepted_survives_a_restart_under_a_broken_file(node, tmp_path, broken):
    node.put("web.yaml", from_cidr())
    await node.start()
    match broken:
        case "file":
            node.put("web.yaml", "a: [")
        case "folder":
            node.folder.rename(tmp_path / "elsewhere")
        case "link":
            (node.folder / "web.yaml").unlink()
            (node.folder / "web.yaml").symlink_to(tmp_path / "nothing")
    again = Node(tmp_path)
    await again.start()
    await again.policies.finish_restoring()
    assert again.names == {IN_FILE}
    assert again.refused


async def test_a_policy_that_left_its_file_while_the_agent_was_away_is_gone(node, tmp_path):
    node.put("web.yaml", from_cidr(), from_cidr(name="q"))
    node.put("gone.yaml", from_cidr())
    await node.start()
    node.put("web.yaml", from_cidr(name="q"))
    (node.folder / "gone.yaml").unlink()
    again = Node(tmp_path)
    await again.start()
    await again.policies.finish_restoring()
    assert {ref.name for ref in again.names} == {"q (web.yaml)"}


async def test_a_folder_that_comes_back_is_followed_again(node, tmp_path):
    node.put("web.yaml", from_cidr())
    await node.start()
    node.folder.rename(tmp_path / "elsewhere")
    await node.follow()
    assert (node.names, len(node.refused)) == ({IN_FILE}, 2)
    (tmp_path / "elsewhere").rename(node.folder)
    node.put("web.yaml", from_cidr("198.51.100.0/24"))
    await node.follow()
    await node.follow()
    assert (node.names, node.refused) == ({IN_FILE}, {})
    assert node.ipcache.get("198.51.100.0/24")


async def test_a_file_that_is_still_being_written_is_left_alone(node):
    await node.start()
    (node.folder / "web.yaml").write_text(yaml.safe_dump(from_cidr()))
    await node.files.reconcile()
    (node.folder / "web.yaml").write_text(yaml.safe_dump(from_cidr("198.51.100.0/24")))
    await node.files.reconcile()
    await node.policies.reconcile()
    assert node.names == set()
    await node.follow()
    assert node.names == {IN_FILE}


async def test_other_files_are_none_of_our_business(node):
    (node.folder / ".web.yaml").write_text("a: [")
    (node.folder / "notes.txt").write_text("a: [")
    (node.folder / "folder.yaml").mkdir()
    await asyncio.wait_for(node.start(), 5)
    assert (node.names, node.refused) == (set(), {})

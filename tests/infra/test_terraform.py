"""Terraform without Terraform: it parses, every reference leads somewhere, and what must be private is.

The `terraform` program comes from no package registry that CI has, so nothing here plans or asks AWS. What is
checked of `terraform fmt` is its indentation, its blank lines and the alignment of equals signs.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import hcl2
import pytest

from tests.conftest import ROOT

FILES = sorted((ROOT / "infra" / "terraform").glob("*.tf"))
TEXT = "\n".join(file.read_text() for file in FILES)


def parsed() -> dict[str, list[Any]]:
    """All blocks, by their kind."""
    blocks: dict[str, list[Any]] = {}
    for file in FILES:
        with file.open() as stream:
            for kind, found in hcl2.load(stream).items():
                blocks.setdefault(kind, []).extend(found if isinstance(found, list) else [found])
    return blocks


BLOCKS = parsed()


def declared(kind: str) -> set[str]:
    """``type.name`` of resources or data sources; the name of others."""
    names: set[str] = set()
    for block in BLOCKS[kind]:
        for outer, inner in block.items():
            outer = outer.strip('"')
            if kind in ("resource", "data"):
                names |= {f"{outer}.{name}" for name in (key.strip('"') for key in inner)}
            elif outer != "__is_block__":
                names.add(outer)
    return names


def resource(kind: str, name: str) -> Any:
    return next(
        block[f'"{kind}"'][f'"{name}"']
        for block in BLOCKS["resource"]
        if f'"{kind}"' in block and f'"{name}"' in block[f'"{kind}"']
    )


def test_every_variable_is_declared_and_used():
    assert set(re.findall(r"\bvar\.(\w+)", TEXT)) == declared("variable")


def test_every_local_is_declared_and_used():
    assert set(re.findall(r"\blocal\.(\w+)", TEXT)) == declared("locals")


def test_every_reference_leads_to_a_resource():
    code = re.sub(r"#.*", "", TEXT)
    used_data = {".".join(found) for found in re.findall(r"\bdata\.(aws_\w+)\.(\w+)", code)}
    assert used_data == declared("data")
    used = {".".join(found) for found in re.findall(r"(?<![\w.\"])(aws_\w+)\.(\w+)", code)}
    assert used - declared("data") <= declared("resource")


def test_variables_and_outputs_say_what_they_are():
    for kind in ("variable", "output"):
        for block in BLOCKS[kind]:
            for name, content in block.items():
                if name != "__is_block__":
                    assert content["description"], name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_is_formatted(file):
    lines = file.read_text().splitlines()
    depth, strings = 0, False
    for number, line in enumerate(lines, 1):
        assert line == line.rstrip(), f"{file.name}:{number}: white space at the end"
        assert "\t" not in line
        bare = re.sub(r'"[^"]*"|#.*', "", line)
        closing = len(re.match(r"[\s})\]]*", bare).group().replace(" ", ""))
        if line and not strings:
            assert len(line) - len(line.lstrip()) == 2 * (depth - closing), f"{file.name}:{number}: {line}"
        depth += sum(bare.count(sign) for sign in "{[(") - sum(bare.count(sign) for sign in "}])")
    assert depth == 0
    for (first, one), (_, two) in pairwise(enumerate(lines, 1)):
        pair = [re.match(r"(\s*)([\w.-]+)(\s*)= (?!.*[{\[(]$)", line) for line in (one, two)]
        if all(pair) and pair[0].group(1) == pair[1].group(1):
            assert pair[0].end(3) == pair[1].end(3), f"{file.name}:{first}: equals signs are not aligned"
        assert one or two, f"{file.name}:{first}: two blank lines"


def test_no_statement_allows_all_of_anything():
    for block in BLOCKS["data"]:
        for content in block.get('"aws_iam_policy_document"', {}).values():
            for statement in content.get("statement", ()) if isinstance(content, dict) else ():
                if '"Deny"' not in str(statement.get("effect", "")):
                    text = json.dumps([statement["actions"], statement.get("resources", [])])
                    assert not re.search(r'[":]\*\\?"', text), statement
    assert "AdministratorAccess" not in TEXT
    assert "FullAccess" not in TEXT


def test_the_server_cannot_write_what_training_writes():
    (local,) = [block for block in BLOCKS["locals"] if "accounts" in block]
    accounts = {
        name: {key: [text.strip('"') for text in account[key]] for key in ("reads", "writes")}
        for name, account in local["accounts"].items()
    }
    assert accounts["serve"] == {"reads": ["data", "runs"], "writes": ["audits"]}
    assert accounts["train"] == {"reads": [], "writes": ["data", "runs"]}
    assert not set(accounts["serve"]["writes"]) & set(accounts["train"]["writes"])


def test_a_role_is_for_one_service_account():
    trust = re.search(r'"assumed_by_pod" \{.*?^\}', TEXT, flags=re.DOTALL | re.MULTILINE).group()
    assert trust.count("StringEquals") == 2
    assert 'values   = ["system:serviceaccount:${each.value.subject}"]' in trust
    assert "${local.issuer}:sub" in trust
    assert "${local.issuer}:aud" in trust


def test_the_bucket_is_private_and_encrypted():
    block = resource("aws_s3_bucket_public_access_block", "this")
    settings = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
    assert all(block[name] is True for name in settings)
    assert "aws_kms_key.this.arn" in json.dumps(
        resource("aws_s3_bucket_server_side_encryption_configuration", "this")
    )
    assert "aws:SecureTransport" in TEXT


def test_nodes_keep_their_identity_and_their_disks_to_themselves():
    template = json.dumps(resource("aws_launch_template", "node"))
    assert '"http_put_response_hop_limit": 1' in template
    assert '\\"required\\"' in template
    assert '"encrypted": true' in template


def test_the_control_plane_is_not_public_by_default():
    config = json.dumps(resource("aws_eks_cluster", "this"))
    assert "length(var.operators_cidrs) > 0" in config
    operators = next(
        block['"operators_cidrs"'] for block in BLOCKS["variable"] if '"operators_cidrs"' in block
    )
    assert operators["default"] == []
    assert "enableNetworkPolicy" in TEXT

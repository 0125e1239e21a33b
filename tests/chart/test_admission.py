"""The admission policy's own CEL texts: an agent writes its own node's ServingNode and no other."""

import celpy
import pytest
from celpy.adapter import json_to_cel

from support.chart import ADMISSION, NAMESPACE

NODE_NAME = "authentication.kubernetes.io/node-name"
AGENT = f"system:serviceaccount:{NAMESPACE}:omniserve-agent"


@pytest.fixture
def policy(render):
    (policy,) = render(api_versions=[ADMISSION]).of("ValidatingAdmissionPolicy")
    return policy["spec"]


def _evaluate(expression, user, node):
    environment = celpy.Environment()
    program = environment.program(environment.compile(expression))
    variables = {"request": {"userInfo": user}, "object": {"metadata": {"name": node}}}
    return program.evaluate({name: json_to_cel(value) for name, value in variables.items()})


def _verdict(policy, user, node):
    """None: admitted; else the message of the first validation that fails."""
    matches = [_evaluate(c["expression"], user, node) for c in policy["matchConditions"]]
    if not all(matches):
        return None
    for validation in policy["validations"]:
        if _evaluate(validation["expression"], user, node):
            continue
        if "messageExpression" in validation:
            return str(_evaluate(validation["messageExpression"], user, node))
        return validation["message"]
    return None


def _agent(*nodes):
    return {"username": AGENT, "extra": {NODE_NAME: list(nodes)}}


def test_an_agent_writes_its_own_node(policy):
    assert _verdict(policy, _agent("n1"), "n1") is None


def test_an_agent_does_not_write_another_node(policy):
    message = _verdict(policy, _agent("n1"), "n2")
    assert message == "the agent of node n1 may write its own ServingNode only, not n2"


@pytest.mark.parametrize(
    "user",
    [
        {"username": AGENT},
        {"username": AGENT, "extra": {}},
        {"username": AGENT, "extra": {"authentication.kubernetes.io/pod-name": ["n1"]}},
    ],
    ids=["no extra", "empty extra", "another extra"],
)
def test_a_token_without_a_node_is_refused(policy, user):
    assert "the token names no node" in _verdict(policy, user, "n1")


def test_two_nodes_in_one_token_are_refused(policy):
    assert _verdict(policy, _agent("n2", "n1"), "n1") is not None
    assert _verdict(policy, _agent("n1", "n2"), "n1") is not None


def test_others_are_none_of_its_business(policy):
    operator = {"username": f"system:serviceaccount:{NAMESPACE}:omniserve-operator"}
    assert _verdict(policy, operator, "n1") is None


def test_it_watches_status_too_and_fails_closed(policy):
    (rule,) = policy["matchConstraints"]["resourceRules"]
    assert set(rule["resources"]) == {"servingnodes", "servingnodes/status"}
    assert set(rule["operations"]) == {"CREATE", "UPDATE"}
    assert policy["failurePolicy"] == "Fail"


def test_another_service_account_is_named(render):
    values = {"agent": {"serviceAccount": {"name": "given"}}}
    (policy,) = render(values, api_versions=[ADMISSION]).of("ValidatingAdmissionPolicy")
    user = {"username": f"system:serviceaccount:{NAMESPACE}:given"}
    assert _verdict(policy["spec"], user, "n1") is not None

"""Browser applications: off unless asked for, and only for the origins named."""

import pytest

from omniserve_agent.http.settings import HttpSettings

APP = "https://app.example:8443"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


def sharing(*origins):
    return HttpSettings(cors_origins=origins)


async def ask(client, path="/v1/chat/completions", origin=APP):
    headers = PREFLIGHT | {"Origin": origin}
    async with client.session.options(client.url + path, headers=headers) as response:
        return response.status, response.headers


async def test_it_is_off_by_default(engine, service, serving, say):
    async with serving([service(engine(say("x")))]) as client:
        assert (await ask(client))[0] == 405
        _, _, headers = await client.get("/v1/models", headers={"Origin": APP})
    assert not {"Access-Control-Allow-Origin", "Vary"} & set(headers)


@pytest.mark.parametrize(("origins", "allowed"), [((APP, "http://localhost"), APP), (("*",), "*")])
async def test_an_allowed_origin_may_ask_send_and_read(
    engine, service, serving, say, origins, allowed
):
    closed = service(engine(say("x")), name="closed", api_keys=frozenset({"k"}))
    services = [service(engine(say("x"))), closed]
    async with serving(services, settings=sharing(*origins)) as client:
        status, headers = await ask(client)
        assert (status, headers["Access-Control-Allow-Origin"]) == (204, allowed)
        assert headers["Access-Control-Allow-Methods"] == "GET, POST"
        assert (
            headers["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]
        )
        for fields, status in (({}, 200), ({"stream": True}, 200), ({"model": "closed"}, 401)):
            body = {"model": "chat", "prompt": "x"} | fields
            found, _, headers = await client.post(
                "/v1/completions", json=body, headers={"Origin": APP}
            )
            assert (found, headers["Access-Control-Allow-Origin"]) == (status, allowed)
            assert "X-Request-Id" in headers["Access-Control-Expose-Headers"]
            assert headers["Vary"] == "Origin"
            assert "Access-Control-Allow-Credentials" not in headers


async def test_others_and_other_paths_may_not(engine, service, serving, say):
    async with serving([service(engine(say("x")))], settings=sharing(APP)) as client:
        for origin in ("https://app.example", "http://app.example:8443", "null"):
            status, headers = await ask(client, origin=origin)
            assert (status, "Access-Control-Allow-Origin" in headers) == (405, False)
        _, _, headers = await client.get("/statusz", headers={"Origin": APP})
        assert "Access-Control-Allow-Origin" not in headers
        _, _, headers = await client.get("/v1/models")
        assert "Access-Control-Allow-Origin" not in headers

"""Images: pins, and how Dockerfiles are read. `make test-image` builds and runs them."""

import re
import tomllib

import pytest

from image_root import SOURCE, ImageError, Instruction, locked, parse

IMAGES = ("operator", "agent")


def _pins(name):
    lines = (SOURCE / f"images/constraints-{name}.txt").read_text().splitlines()
    return {_canonical(line.partition("==")[0]): line.partition("==")[2] for line in lines}


def _canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def _wanted(name):
    """Direct dependencies, as pyproject.toml names them."""
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"][name]]
    return {_canonical(re.match(r"[\w.-]+", text)[0]) for text in texts}


@pytest.mark.parametrize("name", IMAGES)
def test_every_dependency_is_pinned_to_one_version(name):
    pins = _pins(name)
    assert _wanted(name) <= set(pins)
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in pins.values())


def test_torch_is_in_one_image_alone_and_of_the_repositorys_version():
    assert "torch" not in _pins("operator")
    pinned = (SOURCE / "constraints.txt").read_text().strip()
    assert pinned == f"torch=={_pins('agent')['torch']}"


@pytest.mark.parametrize("name", IMAGES)
def test_dockerfiles_run_as_the_charts_user_through_the_shared_steps(name):
    instructions = parse((SOURCE / f"images/{name}/Dockerfile").read_text())
    stages = [i for i in instructions if i.name == "FROM"]
    assert len(stages) == 2
    assert all(i.arguments.startswith("/install.sh ") for i in instructions if i.name == "RUN")
    assert Instruction("USER", "10001:10001") in instructions
    assert instructions[-1] == Instruction("ENTRYPOINT", f'["omniserve-{name}"]')
    last = instructions[instructions.index(stages[1]) :]
    assert not any("build-tools" in i.arguments for i in last)


def test_lines_are_joined_and_comments_left_out():
    text = "# why\nFROM debian:bookworm-slim AS build\nRUN one \\\n    two\n"
    assert parse(text) == [
        Instruction("FROM", "debian:bookworm-slim AS build"),
        Instruction("RUN", "one two"),
    ]


def test_an_instruction_that_would_be_left_out_is_refused():
    with pytest.raises(ImageError, match="HEALTHCHECK is not one of FROM, COPY"):
        parse("FROM debian:bookworm-slim\nHEALTHCHECK CMD true\n")


def test_locks_name_neither_this_project_nor_local_versions():
    frozen = "aiohttp==3.14.5\nomniserve @ file:///src\ntorch==2.13.0+cpu\n"
    assert locked(frozen) == "aiohttp==3.14.5\ntorch==2.13.0\n"

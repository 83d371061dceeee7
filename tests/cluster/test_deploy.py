"""What examples/deploy starts is what this version has, and fits the schemas of who reads it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from softprompt.cli.serve import command

DEPLOY = Path(__file__).parent.parent.parent / "examples" / "deploy"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def pods() -> dict[str, dict[str, Any]]:
    """Every pod that is described, by the file and its name."""
    found = {}
    for document in documents("kubernetes.yaml"):
        if document["kind"] == "Deployment":
            found["kubernetes"] = document["spec"]["template"]
    ray = documents("rayservice.yaml")[0]["spec"]["rayClusterConfig"]
    found["ray-head"] = ray["headGroupSpec"]["template"]
    found["ray-worker"] = ray["workerGroupSpecs"][0]["template"]
    return found


def commands() -> dict[str, list[str]]:
    """What each of them starts softprompt with."""
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    (said,) = re.findall(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE)
    return {
        "Dockerfile": json.loads(said),
        "compose": documents("compose.yaml")[0]["services"]["softprompt"]["command"],
        "kubernetes": pods()["kubernetes"]["spec"]["containers"][0]["args"],
    }


@pytest.mark.parametrize("where", ["Dockerfile", "compose", "kubernetes"])
def test_a_container_starts_a_command_that_there_is(where: str) -> None:
    verb, *words = commands()[where]
    assert verb == "serve"
    with command.make_context("serve", list(words)) as context:  # refuses what it does not know
        assert context.params["host"] == "0.0.0.0"
        assert context.params["keys"], "whoever is reached from elsewhere needs keys"


def test_a_container_is_given_longer_to_stop_than_it_drains() -> None:
    spec = pods()["kubernetes"]["spec"]
    with command.make_context("serve", list(commands()["kubernetes"][1:])) as context:
        drain = context.params["drain"]
    pause = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > drain + pause
    service = documents("compose.yaml")[0]["services"]["softprompt"]
    with command.make_context("serve", list(service["command"][1:])) as context:
        assert float(service["stop_grace_period"].rstrip("s")) > context.params["drain"]


def test_compose_fits_its_schema() -> None:
    pytest.importorskip("check_jsonschema")
    import check_jsonschema
    import jsonschema

    schema = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    (document,) = documents("compose.yaml")
    jsonschema.validate(document, json.loads(schema.read_text(encoding="utf-8")))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document | {"services": {"x": {"ports": 8000}}}, json.loads(schema.read_text()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kubernetes_manifests_fit_their_schemas() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    version = kubernetes_validate.latest_version()
    for document in documents("kubernetes.yaml"):
        kubernetes_validate.validate(document, version, strict=True)
    for name, pod in pods().items():
        about = {"name": name, "labels": {"app": name}}
        template = {"metadata": {"labels": {"app": name}}, **pod}
        wrapped = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": about,
            "spec": {"selector": {"matchLabels": {"app": name}}, "template": template},
        }
        kubernetes_validate.validate(wrapped, version, strict=True)
        wrapped["spec"]["replica"] = 1  # type: ignore[index]
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrapped, version, strict=True)


def test_a_rayservice_starts_what_there_is() -> None:
    pytest.importorskip("ray")
    import ray
    from ray.serve.schema import ServeDeploySchema

    from softprompt.cluster import serve

    spec = documents("rayservice.yaml")[0]["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    ServeDeploySchema.model_validate(config) if hasattr(ServeDeploySchema, "model_validate") else (
        ServeDeploySchema.parse_obj(config)
    )
    (application,) = config["applications"]
    module, _, builder = application["import_path"].partition(":")
    assert module == serve.__name__
    assert spec["rayClusterConfig"]["rayVersion"] == ray.__version__
    getattr(serve, builder)(application["args"] | {"keys": "keys.toml"})
    with pytest.raises(KeyError):
        getattr(serve, builder)({})


def test_the_dockerfile_installs_extras_that_there_are() -> None:
    import tomllib

    project = tomllib.loads((DEPLOY.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (said,) = re.findall(r'^ARG EXTRAS="(.*)"$', (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert set(said.split(",")) <= project["optional-dependencies"].keys()
    assert shlex.split(said)

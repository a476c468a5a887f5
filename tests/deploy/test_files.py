"""The files of deploy/, as far as they can be checked where nothing of what they are for runs."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from ipaddress import IPv4Network, ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from docs.telemetry_pages import find_log_events
from gateway.services import SEND_SPANS_S
from smithers.capacity import FOR_PEOPLE, count_connections
from smithers.server import POOL_MARGIN_S
from smithers.settings import SETTINGS, ServerOptions
from smithers.store.connections import END_TIMEOUT_S
from smithers.telemetry.names import FAMILIES, Kind
from tests.support.balancers import DEPLOY, find_program

TREE = DEPLOY.parent
COMPOSE = yaml.safe_load((TREE / "docker-compose.yml").read_text(encoding="utf-8"))
OURS = {"migrate", "gateway-1", "gateway-2", "worker"}
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
RULES = DEPLOY / "prometheus" / "rules.yml"
RUNBOOK = (DEPLOY / "runbook.md").read_text(encoding="utf-8")
# What is not ours: Prometheus' own, and what the collector's receiver for Postgres says.
FOREIGN = {
    "up",
    "postgresql_backends",
    "postgresql_commits_total",
    "postgresql_connection_max",
    "postgresql_db_size_bytes",
    "postgresql_rollbacks_total",
    "postgresql_rows",
}
POOL_MIB = 512  # of what is no child's: the pool, its fork server, what tools start
LOCKED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def read_documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            yield f"{path.name} {document['kind']}", document


DOCUMENTS = dict(read_documents())
PODS = {
    name: document["spec"]["template"]["spec"]
    for name, document in DOCUMENTS.items()
    if document["kind"] in {"Deployment", "Job"}
}


def series() -> dict[str, str]:
    """The names of series that our families make, and which family it is."""
    found: dict[str, str] = {}
    for family in FAMILIES:
        if family.kind is Kind.HISTOGRAM:
            found |= {f"{family.name}_{part}": family.name for part in ("bucket", "count", "sum")}
        else:
            found[family.name] = family.name
    return found


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[tuple[str, str]]:
    """Every query of every panel and alert, with where it stands."""
    of_panels = [
        (f"{path.stem}: {panel['title']}", target["expr"])
        for path in DASHBOARDS
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
        for target in panel["targets"]
    ]
    return of_panels + [(rule["alert"], rule["expr"]) for rule in alerts()]


def run(*words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=60, **how)


def test_the_compose_file_fits_the_specification():
    done = run(
        *(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"),
        str(TREE / "docker-compose.yml"),
    )
    assert done.returncode == 0, done.stdout


def test_what_services_depend_on_is_there_and_says_how_it_is():
    for name, service in COMPOSE["services"].items():
        for other, wanted in service.get("depends_on", {}).items():
            assert other in COMPOSE["services"], name
            if wanted["condition"] == "service_healthy":
                assert "healthcheck" in COMPOSE["services"][other], (name, other)


def takes_copies(service: dict[str, Any]) -> bool:
    """Say whether compose must copy a secret or a config into the service's containers; a file is mounted."""
    return any(
        "file" not in COMPOSE[kind][one if isinstance(one, str) else one["source"]]
        for kind in ("secrets", "configs")
        for one in service.get(kind, [])
    )


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_locked_down_and_pinned(name: str):
    service = COMPOSE["services"][name]
    # Compose refuses to copy into a container that is read-only.
    assert service.get("read_only", False) is not takes_copies(service)
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    if name in OURS:
        assert service["image"] == "smithers:local"
    else:
        assert re.search(r":v?\d+\.\d+\.\d+", service["image"]) or re.search(
            r":\d+\.\d+-", service["image"]
        )
    # Ours and nginx's images say themselves that they are not root's.
    assert name in OURS | {"balancer"} or service["user"] not in {"root", "0", "0:0"}


def test_no_secret_stands_in_any_file():
    for name, service in COMPOSE["services"].items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|KEY|TOKEN|DATABASE_URL", variable):
                assert re.search(r"\$\{[A-Z_]+:\?", value), (name, variable)
    for name, pod in PODS.items():
        for variable in pod["containers"][0].get("env", []):
            assert "value" not in variable, (name, variable)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_no_log_fills_the_disk(name: str):
    options = COMPOSE["services"][name]["logging"]["options"]
    assert options.keys() == {"max-size", "max-file"}
    assert COMPOSE["services"][name]["logging"]["driver"] == "local"


def test_only_loopback_is_published():
    for service in COMPOSE["services"].values():
        for port in service.get("ports", []):
            assert port.startswith(("127.0.0.1:", "${BIND:-127.0.0.1}:")), port


def filled(text: str, **given: str) -> str:
    """Put compose's variables in: what is given, or their defaults."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: given.get(found[1], found[2]), text)


def test_workers_reach_the_world_and_nothing_of_it_reaches_postgres():
    networks, services = COMPOSE["networks"], COMPOSE["services"]
    closed = {name for name, network in networks.items() if network.get("internal")}
    assert set(services["postgres"]["networks"]) == closed
    for name, service in services.items():
        if "postgres" in service.get("depends_on", {}) or name in OURS | {"collector"}:
            assert closed <= set(service["networks"]), name
    ways_out = set(services["worker"]["networks"]) - closed
    assert ways_out
    for name, service in services.items():
        assert name == "worker" or ways_out.isdisjoint(service["networks"]), name
    assert services["worker"]["env_file"] == [{"path": "workers.env", "required": False}]


def test_what_holds_secrets_is_kept_out_of_the_repository():
    ignored = (TREE / ".gitignore").read_text(encoding="utf-8").split()
    assert {"/.env", "/workers.env"} <= set(ignored)


@pytest.mark.parametrize("given", [{}, {"SUBNET": "172.30.9"}])
def test_the_balancer_finds_the_gateways_at_addresses_that_stay_theirs(given: dict[str, str]):
    (config,) = COMPOSE["networks"]["inside"]["ipam"]["config"]
    subnet, lent = (IPv4Network(filled(config[key], **given)) for key in ("subnet", "ip_range"))
    assert lent.subnet_of(subnet)
    for number in (1, 2):
        own = COMPOSE["services"][f"gateway-{number}"]["networks"]["inside"]["ipv4_address"]
        address = ip_address(filled(own, **given))
        assert address in subnet
        assert address not in lent, "somebody else may be given it while the gateway is away"
        told = COMPOSE["services"]["balancer"]["environment"][f"SMITHERS_GATEWAY_{number}"]
        assert filled(told, **given) == f"{address}:7331"


@pytest.mark.parametrize("given", [{}, {"WORKERS": "8"}])
def test_postgres_allows_what_the_fleet_and_people_may_need(given: dict[str, str]):
    services = COMPOSE["services"]
    command = [filled(word, **given) for word in services["worker"]["command"]]
    workers = int(command[command.index("--workers") + 1])
    pool = ServerOptions(http_workers=0, workers=workers)
    gateway = ServerOptions(http_workers=1, workers=0)
    needed = services["worker"]["deploy"]["replicas"] * count_connections(pool)
    needed += 2 * count_connections(gateway)
    allowed = re.search(r"max_connections=(\d+)", " ".join(services["postgres"]["command"]))
    assert allowed is not None
    assert needed + FOR_PEOPLE <= int(allowed[1])


def test_every_file_that_is_mounted_is_there():
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                assert (TREE / volume.split(":")[0]).exists(), volume


def test_the_image_copies_what_is_there_and_is_nobodys():
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (TREE / source).exists(), source
            assert f"!{source}" in ignored, source
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert "PYTHONSAFEPATH=1" in text
    extras = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert re.findall(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE) == [
        ",".join(extras["optional-dependencies"])
    ]
    assert re.search(r"python:3\.11\.\d+-", text)


def test_flags_and_variables_of_the_deployed_commands_exist():
    flags = {setting.flag for setting in SETTINGS}
    variables = {setting.env for setting in SETTINGS if setting.env}
    commands = [service["command"] for name, service in COMPOSE["services"].items() if name in OURS]
    commands += [pod["containers"][0]["args"] for pod in PODS.values()]
    for command in commands:
        assert command[0] in {"gateway", "worker", "db"}
        assert {word for word in command if word.startswith("--")} <= flags, command
    named = [*COMPOSE["services"]["worker"]["environment"]]
    named += [one["name"] for pod in PODS.values() for one in pod["containers"][0].get("env", [])]
    assert {name for name in named if not name.startswith("OTEL_")} <= variables


def test_manifests_fit_the_schemas_of_kubernetes():
    for path in MANIFESTS:
        if path.name == "scaling.yaml":  # KEDA's own kinds
            continue
        done = run(sys.executable, "-m", "kubernetes_validate", "--strict", str(path))
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_commands_of_the_readme_name_manifests_and_objects_that_exist():
    readme = (DEPLOY / "README.md").read_text(encoding="utf-8")
    objects = {
        (document["kind"].lower(), document["metadata"]["name"]) for document in DOCUMENTS.values()
    }
    named = re.findall(r"\b(job|deployment)[ /](smithers-\w+)", readme)
    assert {"job", "deployment"} == {kind for kind, _name in named}
    assert set(named) <= objects
    files = re.findall(r"--filename (deploy/\S+)", readme)
    assert files
    assert all((TREE / file).exists() for file in files)


def test_all_pods_are_of_one_version():
    assert len({pod["containers"][0]["image"] for pod in PODS.values()}) == 1


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_locked_down(name: str):
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"] == LOCKED
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("kind", ["gateway", "worker"])
def test_deployments_are_probed_kept_and_fenced_in(kind: str):
    deployment = DOCUMENTS[f"{kind}.yaml Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    budget = DOCUMENTS[f"{kind}.yaml PodDisruptionBudget"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    policies = [
        policy["spec"]["podSelector"]["matchLabels"]
        for policy in yaml.safe_load_all(
            (DEPLOY / "kubernetes" / "network.yaml").read_text(encoding="utf-8")
        )
    ]
    assert any(policy.items() <= labels.items() for policy in policies)


def test_a_worker_is_killed_for_its_memory_before_its_pod_is():
    (container,) = PODS["worker.yaml Deployment"]["containers"]
    flags = dict(pairwise(container["args"]))
    limit = container["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    children_mib = int(flags["--workers"]) * int(flags["--worker-memory"])
    assert children_mib + POOL_MIB <= int(limit.removesuffix("Gi")) * 1024


def test_a_stop_has_the_time_that_a_drain_may_take():
    gateway, worker = PODS["gateway.yaml Deployment"], PODS["worker.yaml Deployment"]
    (container,) = gateway["containers"]
    before_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = ServerOptions().drain_timeout_s
    gateway_s = drain_s + SEND_SPANS_S + END_TIMEOUT_S
    worker_s = drain_s + POOL_MARGIN_S + SEND_SPANS_S + END_TIMEOUT_S
    services = COMPOSE["services"]
    assert gateway["terminationGracePeriodSeconds"] >= before_s + gateway_s
    assert worker["terminationGracePeriodSeconds"] >= worker_s
    assert float(services["gateway-1"]["stop_grace_period"].removesuffix("s")) >= gateway_s
    assert float(services["worker"]["stop_grace_period"].removesuffix("s")) >= worker_s
    assert services["postgres"]["stop_grace_period"] == "2m"  # Docker's own 10 s end in a kill


async def test_the_query_that_scales_counts_what_wants_a_worker_by_indexes(database: str):
    triggers = DOCUMENTS["scaling.yaml ScaledObject"]["spec"]["triggers"]
    query = triggers[0]["metadata"]["query"]
    connection = await asyncpg.connect(database)
    try:
        await connection.execute(
            """INSERT INTO smithers.runs (run_id, status, last_seq, created_at, due_at, owner_id, is_solo, crash_count) VALUES
            ('due', 'queued', 0, now(), now(), NULL, false, 0),
            ('isolated', 'queued', 0, now(), now(), NULL, true, 0),
            ('suspect', 'running', 0, now(), now(), NULL, false, 1),
            ('later', 'waiting-timer', 0, now(), now() + interval '1 h', NULL, false, 0),
            ('isolated-later', 'waiting-timer', 0, now(), now() + interval '1 h', NULL, true, 0),
            ('parked', 'waiting-approval', 0, now(), NULL, NULL, false, 0),
            ('owned', 'running', 0, now(), now(), gen_random_uuid(), true, 0)"""
        )
        await connection.execute(
            """INSERT INTO smithers.runs (run_id, database, status, last_seq, mirrored_seq, created_at) VALUES
            ('reserved', 'ORDERS', 'queued', -1, -1, now()),
            ('working', 'ORDERS', 'running', 3, 3, now()),
            ('asking', 'ORDERS', 'waiting-approval', 5, 5, now())"""
        )
        assert await connection.fetchval(query) == 6
        await connection.execute("SET enable_seqscan = off")
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {query}"))
        assert {
            "runs_claimable_idx",
            "runs_solo_idx",
            "runs_owner_id_idx",
            "runs_status_created_at_run_id_idx",
        } <= set(re.findall(r"runs_\w+_idx", plan)), plan
    finally:
        await connection.close()


def test_promtool_accepts_rules_their_tests_and_the_configuration():
    promtool = find_program("promtool")
    for words in (
        ("check", "rules", str(RULES)),
        ("test", "rules", str(RULES.with_name("rules.test.yml"))),
        ("check", "config", "--syntax-only", str(RULES.with_name("prometheus.yml"))),
    ):
        done = run(promtool, *words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_reads_every_query_of_a_dashboard(tmp_path: Path):
    rules = [
        {"record": f"query_{number}", "expr": expr.replace("$__rate_interval", "1m")}
        for number, (_where, expr) in enumerate(queries())
    ]
    file = tmp_path / "queries.yml"
    file.write_text(
        yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8"
    )
    done = run(find_program("promtool"), "check", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def unknown_in(expr: str) -> set[str]:
    """Find the names of series and labels in a query that nobody says."""
    families = {family.name: family for family in FAMILIES}
    known = series()
    named = re.findall(r"\b((?:smithers|postgresql)_\w+|up)\b", expr)
    labels = {"le", "instance"}
    for name in named:
        labels |= {*families[known[name]].labels} if name in known else {"job", "state"}
    asked = set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", expr))
    for group in re.findall(r"by \(([^)]*)\)", expr):
        asked |= {word.strip() for word in group.split(",")}
    return ({*named} - known.keys() - FOREIGN) | (asked - labels) | ({expr} if not named else set())


@pytest.mark.parametrize(("where", "expr"), queries(), ids=lambda value: str(value)[:60])
def test_a_query_names_families_and_labels_that_exist(where: str, expr: str):
    assert unknown_in(expr) == set(), where


def test_a_query_that_names_what_does_not_exist_is_found():
    assert unknown_in("sum(rate(smithers_runs_lost_total[1m]))") == {"smithers_runs_lost_total"}
    assert unknown_in('max by (colour) (smithers_runs{shape="round"})') == {"colour", "shape"}
    assert unknown_in("sum(rate(smithers_run_duration_seconds[1m]))") == {
        "smithers_run_duration_seconds"
    }
    assert unknown_in("vector(1)") == {"vector(1)"}


def test_every_alert_has_its_section_in_the_runbook_and_every_section_its_alert():
    named = [rule["alert"] for rule in alerts()]
    assert re.findall(r"^## (Smithers\w+)$", RUNBOOK, re.MULTILINE) == named
    for rule in alerts():
        assert rule["annotations"]["runbook_url"] == f"deploy/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"page", "ticket"}


def test_the_runbook_names_log_events_and_metrics_that_exist():
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", RUNBOOK))
    of_postgres = {"max_connections", "max_wal_size"}
    fields = {"exit_code"}
    assert named - of_postgres - fields <= find_log_events().keys() | series().keys()


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_provisioned(path: Path):
    board = json.loads(path.read_text(encoding="utf-8"))
    assert board["uid"] == f"smithers-{path.stem}"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    cells = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
    assert len(cells) == len(ids), "panels lie on one another"
    sources = yaml.safe_load(
        (DEPLOY / "grafana" / "provisioning" / "datasources" / "datasources.yaml").read_text(
            encoding="utf-8"
        )
    )["datasources"]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} <= {
        source["uid"] for source in sources
    }
    for panel in board["panels"]:
        assert panel["title"]
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])


def test_the_collectors_pipelines_are_made_of_what_it_has():
    told = yaml.safe_load((DEPLOY / "collector" / "collector.yaml").read_text(encoding="utf-8"))
    used: dict[str, set[str]] = {"receivers": set(), "processors": set(), "exporters": set()}
    for pipeline in told["service"]["pipelines"].values():
        for part, names in used.items():
            names |= set(pipeline[part])
    assert used == {part: set(told[part]) for part in used}
    assert set(told["service"]["extensions"]) == set(told["extensions"])
    hosts = {
        "postgres": told["receivers"]["postgresql"]["endpoint"],
        "jaeger": told["exporters"]["otlp/traces"]["endpoint"],
    }
    for host, endpoint in hosts.items():
        assert endpoint.split(":")[0] == host in COMPOSE["services"]


@pytest.mark.parametrize("kind", ["gateway", "worker"])
def test_pods_are_scraped_with_a_token_by_their_labels_and_ports(kind: str):
    told = yaml.safe_load((DEPLOY / "prometheus" / "kubernetes.yml").read_text(encoding="utf-8"))
    job = next(job for job in told["scrape_configs"] if job["job_name"] == kind)
    assert "credentials_file" in job["authorization"]
    pod = DOCUMENTS[f"{kind}.yaml Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    port = pod["spec"]["containers"][0]["ports"][0]["name"]
    names = [labels[f"app.kubernetes.io/{label}"] for label in ("name", "component")]
    chosen, living = job["relabel_configs"]
    assert chosen["regex"] == ";".join([*names, port])
    # A pod that was evicted stays, and would be down for ever; one that is not there yet is not down.
    assert living == {
        "source_labels": ["__meta_kubernetes_pod_phase"],
        "regex": "Pending|Failed|Succeeded",
        "action": "drop",
    }
    assert "annotations" not in pod["metadata"]


@pytest.mark.parametrize("kind", ["gateway", "worker"])
def test_pods_may_reach_postgres_a_pooler_and_the_collector_over_both_protocols(kind: str):
    policies = yaml.safe_load_all(
        (DEPLOY / "kubernetes" / "network.yaml").read_text(encoding="utf-8")
    )
    (policy,) = [one for one in policies if one["metadata"]["name"] == f"smithers-{kind}"]
    open_ports = {
        port["port"]
        for rule in policy["spec"]["egress"]
        if "to" not in rule
        for port in rule["ports"]
    }
    assert open_ports == {5432, 6432, 4317, 4318}


def test_a_gateway_that_has_lost_its_name_is_still_asked_for():
    told = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    jobs = {job["job_name"]: job for job in told["scrape_configs"]}
    # What is looked up by a name that has gone is no target: of it, nobody says that it is down.
    assert [one["targets"] for one in jobs["gateway"]["static_configs"]] == [
        ["gateway-1:7331", "gateway-2:7331"]
    ]
    assert 'up{job="gateway"}' in RULES.read_text(encoding="utf-8")


def test_prometheus_asks_services_and_ports_that_exist():
    told = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    asked = set()
    for job in told["scrape_configs"]:
        for one in job.get("dns_sd_configs", []):
            asked |= {(name, one["port"]) for name in one["names"]}
        for one in job.get("static_configs", []):
            asked |= {
                (name, int(port)) for name, port in (target.split(":") for target in one["targets"])
            }
    assert {name for name, _port in asked} <= set(COMPOSE["services"])
    metrics_port = next(int(one.default) for one in SETTINGS if one.field == "metrics_port")
    assert {("gateway-1", 7331), ("gateway-2", 7331), ("worker", metrics_port)} <= asked

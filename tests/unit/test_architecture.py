"""The rules of the house that no import may break."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED, SERVER, CLIENT = (
    ROOT / "shared" / "hanse",
    ROOT / "server" / "hanse_server",
    ROOT / "client" / "hanse_client",
)
FLOWER_SEAM = SHARED / "flower.py"
PUBLIC_FLOWER = ("flwr", "flwr.app", "flwr.serverapp", "flwr.clientapp", "flwr.simulation")
PUBLIC_FLOWER_SUBMODULES = (
    "flwr.serverapp.strategy",
    "flwr.clientapp.mod",
    "flwr.clientapp.typing",
)
CONTRACTED_FLOWER = ("flwr.supercore.task_identity", "flwr.app.exception")
"""What ``hanse.flower`` may touch: each has a test in ``tests/contract/test_flower.py``."""

UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


PLAINTEXT = {
    *("insecure_channel", "add_insecure_port", "insecure_channel_credentials"),
    *("insecure_server_credentials", "local_channel_credentials", "local_server_credentials"),
}


def modules(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def imports(source: str) -> Iterator[str]:
    """Every module that the source imports, at any depth, as an absolute dotted name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module
            # What is imported from a package may itself be a module.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted_names(source: str) -> Iterator[str]:
    """Every dotted expression of names, such as ``torch.load``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            parts: list[str] = []
            inner: ast.expr = node
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name):
                yield ".".join([inner.id, *reversed(parts)])


def is_of(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def is_internal_flower(name: str) -> bool:
    """Whether this is of a module of Flower beyond its public packages."""
    if not is_of(name, "flwr"):
        return False
    module = name
    while not _is_module(module):
        module = module.rpartition(".")[0]
    return module not in PUBLIC_FLOWER and not any(
        is_of(module, package) for package in PUBLIC_FLOWER_SUBMODULES
    )


def _is_module(dotted: str) -> bool:
    try:
        return find_spec(dotted) is not None
    except ModuleNotFoundError:  # what stands before the last dot is no package
        return False


def reaches(*packages: str) -> Callable[[str], list[str]]:
    def broken(source: str) -> list[str]:
        return [name for name in imports(source) if any(is_of(name, p) for p in packages)]

    return broken


def flower_internals(source: str) -> list[str]:
    names = [*imports(source), *dotted_names(source)]
    return [name for name in names if is_internal_flower(name)]


def unpicklers(source: str) -> list[str]:
    found = [name for name in imports(source) if name.split(".")[0] in UNPICKLERS]
    found += [name for name in dotted_names(source) if name in {"torch.load", "torch.save"}]
    found += [name for name in imports(source) if name in {"torch.load", "torch.save"}]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            allowed = not (isinstance(node.value, ast.Constant) and node.value.value is False)
            found += ["allow_pickle"] if allowed else []
    return found


def prints(source: str) -> list[str]:
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [
        "print" for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"
    ]


def plaintext(source: str) -> list[str]:
    """What opens a connection that is not TLS."""
    names = [name.rpartition(".")[2] for name in (*dotted_names(source), *imports(source))]
    return [name for name in names if name in PLAINTEXT]


def broad_excepts(source: str) -> list[str]:
    """Handlers of everything without a comment beside or below that gives the reason."""
    lines = source.splitlines()
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            kinds = [node.type] if not isinstance(node.type, ast.Tuple) else node.type.elts
            named = {kind.id for kind in kinds if isinstance(kind, ast.Name)}
            broad = node.type is None or named & {"Exception", "BaseException"}
            if broad and "#" not in "".join(lines[node.lineno - 1 : node.lineno + 1]):
                found.append(f"line {node.lineno}")
    return found


RULES = {
    "shared imports neither side": (reaches("hanse_server", "hanse_client"), modules(SHARED)),
    "the server does not import the client": (reaches("hanse_client"), modules(SERVER)),
    "the client does not import the server": (reaches("hanse_server"), modules(CLIENT)),
    "Flower's internals stay behind one seam": (
        flower_internals,
        [path for path in modules(SHARED, SERVER, CLIENT) if path != FLOWER_SEAM],
    ),
    "nothing is unpickled": (unpicklers, modules(SHARED, SERVER, CLIENT)),
    "the link has no plaintext": (plaintext, modules(SHARED, SERVER, CLIENT)),
    "only the command line prints": (
        prints,
        [path for path in modules(SHARED, SERVER, CLIENT) if path.name != "cli.py"],
    ),
    "broad handlers give their reason": (broad_excepts, modules(SHARED, SERVER, CLIENT)),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    check, paths = RULES[rule]
    assert paths

    broken = {
        str(path.relative_to(ROOT)): found
        for path in paths
        if (found := check(path.read_text(encoding="utf-8")))
    }

    assert not broken, rule


def test_the_seam_touches_only_what_has_a_contract_test() -> None:
    touched = flower_internals(FLOWER_SEAM.read_text(encoding="utf-8"))

    assert touched
    assert all(any(is_of(name, module) for module in CONTRACTED_FLOWER) for name in touched)


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (reaches("hanse_client"), "import hanse_client.site"),
        (reaches("hanse_client"), "def f():\n    from hanse_client import site"),
        (flower_internals, "from flwr.common import constant"),
        (flower_internals, "from flwr.app import exception"),
        (flower_internals, "import flwr\nflwr.supercore.task_identity"),
        (flower_internals, "from flwr import supercore"),
        (unpicklers, "import pickle"),
        (unpicklers, "from joblib import load"),
        (unpicklers, "import torch\ntorch.load(path)"),
        (unpicklers, "from torch import load"),
        (unpicklers, "np.load(path, allow_pickle=True)"),
        (unpicklers, "np.load(path, allow_pickle=trusted)"),
        (plaintext, "grpc.aio.insecure_channel(address)"),
        (plaintext, "server.add_insecure_port(address)"),
        (plaintext, "from grpc import local_channel_credentials"),
        (prints, "print(1)"),
        (broad_excepts, "try:\n    f()\nexcept Exception:\n    g()"),
        (broad_excepts, "try:\n    f()\nexcept:\n    g()"),
        (broad_excepts, "try:\n    f()\nexcept (ValueError, BaseException):\n    g()"),
    ],
)
def test_a_rule_sees_what_breaks_it(check: Callable[[str], list[str]], source: str) -> None:
    assert check(source)


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (reaches("hanse_client"), "import hanse_clientele"),
        (
            flower_internals,
            "from flwr.app import Message\nfrom flwr.serverapp.strategy import FedAvg",
        ),
        (flower_internals, "import flwr\nflwr.__version__"),
        (unpicklers, "np.load(path, allow_pickle=False)"),
        (plaintext, "grpc.aio.secure_channel(address, credentials)"),
        (broad_excepts, "try:\n    f()\nexcept ValueError:\n    g()"),
    ],
)
def test_a_rule_lets_pass_what_keeps_it(check: Callable[[str], list[str]], source: str) -> None:
    assert not check(source)

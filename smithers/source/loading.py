"""Load a stored version of a workflow's source into this process: for children, never a gateway.

A version is loaded as a whole or not at all: if its entry fails, nothing of it remains.
"""

import sys
from types import ModuleType
from typing import Any

from smithers.source.closure import SourceBundle
from smithers.source.errors import ImportFailed, SourceBroken, SourceError, WorkflowNotFound
from smithers.source.version import VERSION_ATTRIBUTE, LoadedVersion, package_name
from smithers.tracebacks import author_message, author_traceback, find_place, without_paths
from smithers.workflow import Workflow


def load_module(bundle: SourceBundle) -> ModuleType:
    """Execute a bundle's entry, unless it was executed already; raises SourceBroken, ImportFailed.

    Executes the author's code in the calling thread, for as long as that takes. Of several threads
    with the same bundle one executes it and the others wait.
    """
    while True:
        version = _version(bundle)
        with version.lock:
            # The previous holder of the lock may have failed, and removed the version.
            if sys.modules.get(version.package.__name__) is not version.package:
                continue
            try:
                return version.load(bundle.entry)
            except BaseException as error:
                # All of them: sys.exit() in a module is one more failure, and must not end this process.
                failure = _failure(error, version)
                version.unload()
                raise failure from error


def load_workflow(bundle: SourceBundle, export: str | None) -> Workflow[Any]:
    """Load a version and pick one of its workflows; `file.py:name` names one in a module that the entry imports."""
    file, _, name = (export or "").rpartition(":")
    if not file:
        return find_workflow(load_module(bundle), export)
    load_module(bundle)  # first: modules are executed in the order in which the entry imports them
    if file not in bundle.modules:
        raise WorkflowNotFound(f"{file} is no part of the source of {bundle.entry}", candidates=())
    return find_workflow(_version(bundle).load(file), name)


def find_export(source_hash: str, workflow: Workflow[Any]) -> str | None:
    """Return where a loaded version has a workflow, as load_workflow takes it; the entry's name for it comes first.

    None: no module has it under a name. Its builder does not tell: a decorator may have put a function of another module
    in the author's place.
    """
    package = sys.modules.get(package_name(source_hash))
    if package is None:
        return None
    version: LoadedVersion = vars(package)[VERSION_ATTRIBUTE]
    for file, module in version.list_ready():
        for name, value in list(vars(module).items()):
            if value is workflow:
                return f"{file}:{name}"
    return None


def unload(source_hash: str) -> None:
    """Remove a version that no run uses any more; it can be loaded again, and is then executed again."""
    package = sys.modules.get(package_name(source_hash))
    if package is not None:
        version: LoadedVersion = vars(package)[VERSION_ATTRIBUTE]
        version.unload()


def find_workflow(module: ModuleType, name: str | None) -> Workflow[Any]:
    """Pick a module's workflow; raises WorkflowNotFound with the candidates.

    By name: the attribute of that name, else the workflow of that name. Without one: the attribute
    `workflow`, else the only workflow that the module itself defines.
    """
    found = {key: value for key, value in vars(module).items() if isinstance(value, Workflow)}
    if name is not None:
        chosen = [found[name]] if name in found else _named(found, name)
        missing = f"no workflow {name!r}"
    elif "workflow" in found:
        return found["workflow"]
    else:
        chosen = _distinct(found, module)
        missing = (
            "no workflow (a function under @workflow)" if not found else "no workflow of its own"
        )
    if len(chosen) == 1:
        return chosen[0]
    raise _not_found(module, found, missing if not chosen else "several workflows")


def _named(found: dict[str, Workflow[Any]], name: str) -> list[Workflow[Any]]:
    return list({id(each): each for each in found.values() if each.name == name}.values())


def _distinct(found: dict[str, Workflow[Any]], module: ModuleType) -> list[Workflow[Any]]:
    """Omit imported workflows, and second names of the same workflow."""
    own = [
        each
        for each in found.values()
        if getattr(each.builder, "__module__", None) == module.__name__
    ]
    return list({id(each): each for each in own}.values())


def _not_found(module: ModuleType, found: dict[str, Workflow[Any]], what: str) -> WorkflowNotFound:
    candidates = tuple(sorted(found))
    file = module.__file__
    hint = f"; name one: {file}:NAME with NAME one of {', '.join(candidates)}" if candidates else ""
    return WorkflowNotFound(f"{file} holds {what}{hint}", candidates=candidates)


def _version(bundle: SourceBundle) -> LoadedVersion:
    name = package_name(bundle.source_hash)
    package = sys.modules.get(name)
    if package is None:
        package = LoadedVersion(bundle).package
        # setdefault is one step for all threads: one of several versions stays, the rest are lost.
        package = sys.modules.setdefault(name, package)
    version: LoadedVersion = vars(package)[VERSION_ATTRIBUTE]
    return version


def _failure(error: BaseException, version: LoadedVersion) -> SourceError:
    """Describe why a module could not be executed; before the version is unloaded."""
    suffix = version.file_suffix
    if isinstance(error, SyntaxError) and (error.filename or "").endswith(suffix):
        file = str(error.filename).removesuffix(suffix)
        return SourceBroken(without_paths(error.msg), file=file, line=error.lineno)
    shown = author_traceback(error)
    file, line = find_place(shown) or (version.bundle.entry, None)
    place = file if line is None else f"{file}, line {line}"
    message = without_paths(author_message(error))
    return ImportFailed(
        f"{version.bundle.entry} cannot be imported: {message} ({place})",
        traceback=shown,
        file=file,
        line=line,
    )

"""Write the release notes of a git repository, and ask before they are published.

Reads the history with git, sorts the commits by what they say and touch, drafts each section in a task of its own,
shortens the draft until it fits, has a person approve it, and writes the file. No model is asked: the same history gives
the same notes.

    smithers up examples/release_notes.py --input '{"repository": ".", "output": "/tmp/notes.md"}'
"""

import os
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from pydantic import BaseModel, Field

from smithers import (
    Approval,
    ApprovalDecision,
    Branch,
    Context,
    Loop,
    Parallel,
    Retry,
    Sequence,
    Task,
    current_task,
    workflow,
)

MAX_COMMITS = 1_000  # what is read at the most: an output has room for a mebibyte
MAX_PATHS = 20  # of one commit
HEAD_LINES = 24  # of the draft, shown to whoever approves
GIT_TIMEOUT_S = 60

# The order is that of the notes.
TITLES = {
    "breaking": "Breaking changes",
    "features": "New",
    "fixes": "Fixed",
    "performance": "Faster",
    "security": "Security",
    "removed": "Removed",
    "documentation": "Documentation",
    "tests": "Tests",
    "build": "Build and dependencies",
    "internal": "Under the hood",
    "other": "Also changed",
}

PREFIXES = {  # of conventional commits
    "feat": "features",
    "feature": "features",
    "fix": "fixes",
    "bugfix": "fixes",
    "hotfix": "fixes",
    "perf": "performance",
    "docs": "documentation",
    "doc": "documentation",
    "test": "tests",
    "tests": "tests",
    "build": "build",
    "ci": "build",
    "deps": "build",
    "security": "security",
    "refactor": "internal",
    "style": "internal",
    "chore": "internal",
    "revert": "removed",
}

WORDS = (  # how a subject begins, or what it speaks of; the first that fits counts
    ("security", r"\bCVE-\d|\bvulnerab|\bsecurity\b"),
    (
        "fixes",
        r"^(fix|correct|repair|prevent|avoid|resolve|handle|restore|stop)|\bbugs?\b|\bregression\b",
    ),
    ("performance", r"^(speed|optimi[sz]e)|\bfaster\b|\bperformance\b|\blatency\b"),
    ("build", r"^(bump|upgrade|pin|release|version)\b|\bdependenc(y|ies)\b|\bCI\b"),
    ("removed", r"^(remove|drop|delete|revert|deprecate)"),
    ("documentation", r"^(document|describe|explain)|\btypos?\b|\breadme\b|\bchangelog\b"),
    ("tests", r"^tests?\b|\btests?$"),
    ("internal", r"^(refactor|rename|move|clean|simplify|extract|reformat|tidy|lint|split|merge)"),
    (
        "features",
        r"^(add|introduce|support|implement|allow|give|let|make|create|serve|enable|new|show)",
    ),
)

PLACES = (  # where all that a commit touches lies
    ("documentation", r"(^|/)docs?/|\.(md|rst|adoc)$|^(LICENSE|AUTHORS|CHANGES)"),
    ("tests", r"(^|/)tests?/|(^|/)test_[^/]+$|_test\.[a-z]+$|\.spec\.[a-z]+$"),
    ("build", r"^\.(github|gitlab|circleci|ci)/|(^|/)(Makefile|Dockerfile|Jenkinsfile)$"),
    (
        "build",
        r"\.lock$|-lock\.json$|(^|/)(package\.json|Cargo\.toml|go\.(mod|sum)|constraints.*\.txt)$",
    ),
    ("build", r"(^|/)(pyproject\.toml|setup\.(py|cfg)|requirements.*\.txt)$"),
)


class Request(BaseModel):
    """Of which repository, since when, and where to."""

    repository: str = Field(default=".", description="A path; a relative one begins at the root.")
    since: str | None = Field(default=None, description="A tag or commit; default: the newest tag.")
    output: str = Field(default="RELEASE_NOTES.md", description="Where the notes are written.")
    max_chars: int = Field(default=6_000, ge=200, description="The notes are shortened to this.")


class Commit(BaseModel):
    """What the notes need of a commit."""

    sha: str
    author: str
    date: str
    subject: str
    is_breaking: bool = False
    paths: list[str] = []


class History(BaseModel):
    """The commits of a release, newest first."""

    name: str
    head: str | None  # None: a repository without a commit
    since: str | None
    commits: list[Commit]
    left_out: int = 0  # older ones, beyond MAX_COMMITS


class Statistics(BaseModel):
    """Who and how much."""

    commits: int
    authors: list[str]
    days: int
    busiest: list[str]


class Section(BaseModel):
    """One heading and its lines, the most telling first."""

    kind: str
    lines: list[str]


class Published(BaseModel):
    """What came of it."""

    path: str | None
    summary: str
    chars: int = 0


@workflow(input=Request)
def release_notes(ctx: Context[Request]) -> Sequence:
    """Read, sort, draft, polish, ask, write."""
    request = ctx.input
    history = ctx.output_maybe("read-history", History)
    statistics = ctx.output_maybe("statistics", Statistics)
    kinds = sort_commits(history.commits) if history else {}
    draft = ctx.latest("polish", str)
    decision = ctx.output_maybe("publish", ApprovalDecision)

    def draft_notes(history: History, statistics: Statistics) -> str:
        sections = [ctx.output(f"draft-{kind}", Section) for kind in kinds]
        round_number = current_task().iteration
        return compose(history, statistics, sections, round_number, request.max_chars)

    return Sequence(
        Task("read-history", lambda: read_history(request.repository, request.since), timeout=120),
        history
        and Parallel(
            Task(
                "statistics",
                lambda: count(history.commits),
                retries=2,
                retry=Retry(initial=0.2),
            ),
            *(
                Task(f"draft-{kind}", lambda kind=kind: draft_section(kind, kinds[kind]))
                for kind in kinds
            ),
        ),
        statistics
        and Loop(
            "shorten",
            Task(
                "polish",
                draft_notes,
                needs={"history": "read-history", "statistics": "statistics"},
            ),
            until=draft is not None and len(draft) <= request.max_chars,
            max_iterations=10,
        ),
        history
        and draft
        and Approval(
            "publish",
            title=f"Publish the release notes of {history.name}?",
            summary=head_of(draft),
            on_deny="continue",
        ),
        history
        and draft
        and decision
        and Branch(
            decision.approved,
            then=Task("write", lambda: write(draft, request.output, history)),
            otherwise=Task(
                "shelve", lambda: Published(path=None, summary=f"not published: {decision.note}")
            ),
        ),
    )


def read_history(repository: str, since: str | None) -> History:
    """Read the commits since a revision, by default since the newest tag below the head."""
    place = current_task().root_dir / repository
    if not place.is_dir():
        raise ValueError(f"{place} is no directory")
    top = git(place, "rev-parse", "--path-format=absolute", "--git-common-dir").strip()
    name = (
        Path(top).parent.name if Path(top).name == ".git" else Path(top).name.removesuffix(".git")
    )
    head = try_git(place, "rev-parse", "--quiet", "--verify", "HEAD^{commit}")
    if head is None:
        return History(name=name, head=None, since=None, commits=[])
    if since is None:
        # Of the parent: the notes of a commit that is tagged are those of that tag.
        since = try_git(place, "describe", "--tags", "--abbrev=0", "HEAD^")
        start = since
    else:
        start = git(
            place, "rev-parse", "--verify", "--end-of-options", f"{since}^{{commit}}"
        ).strip()
    span = "HEAD" if start is None else f"{start}..HEAD"
    commits = list_commits(place, span)
    total = int(git(place, "rev-list", "--count", "--no-merges", span, "--"))
    print(f"{len(commits)} commits of {name} since {since or 'its beginning'}")  # noqa: T201 - what a task prints is shown as it runs
    return History(
        name=name, head=head[:10], since=since, commits=commits, left_out=total - len(commits)
    )


def list_commits(place: Path, span: str) -> list[Commit]:
    """List a span's commits, without merges."""
    log = ["log", "--no-merges", "--no-show-signature", f"--max-count={MAX_COMMITS}"]
    # Five fields end with a NUL each, and no field can hold one.
    fields = git(place, *log, "--format=tformat:%H%x00%aN%x00%aI%x00%s%x00%b%x00", span, "--")
    touched = touched_paths(git(place, *log, "--name-only", "--format=tformat:%x00%H", span, "--"))
    texts = [text.lstrip("\n") for text in fields.split("\0")]
    return [
        Commit(
            sha=sha,
            author=author,
            date=date,
            subject=subject[:300],
            is_breaking="BREAKING CHANGE" in body,
            paths=touched.get(sha, [])[:MAX_PATHS],
        )
        for sha, author, date, subject, body in zip(*[iter(texts)] * 5, strict=False)
    ]


def touched_paths(text: str) -> dict[str, list[str]]:
    """Read which paths each commit touches: a NUL, its hash, and a path a line."""
    blocks = (block.splitlines() for block in text.split("\0") if block)
    return {block[0]: [line for line in block[1:] if line] for block in blocks}


def git(place: Path, *arguments: str) -> str:
    """Call git there, whatever repository the environment names; what it complains of is the error."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    result = subprocess.run(  # noqa: S603 - no shell, and revisions are resolved to hashes first
        ["git", "-c", "core.quotePath=off", "-C", str(place), *arguments],  # noqa: S607 - whichever git there is
        capture_output=True,
        check=False,
        env={**environment, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        timeout=GIT_TIMEOUT_S,
    )
    if result.returncode:
        complaint = result.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"git {arguments[0]} in {place}: {complaint or result.returncode}")
    return result.stdout.decode(errors="replace")


def try_git(place: Path, *arguments: str) -> str | None:
    """Call git for something that there may not be."""
    try:
        return git(place, *arguments).strip() or None
    except RuntimeError:
        return None


def sort_commits(commits: list[Commit]) -> dict[str, list[Commit]]:
    """Sort commits by kind, in the order of the notes; a kind without commits is not in it."""
    found: dict[str, list[Commit]] = {}
    for commit in commits:
        found.setdefault(kind_of(commit), []).append(commit)
    return {kind: found[kind] for kind in TITLES if kind in found}


def kind_of(commit: Commit) -> str:
    """Say of what kind a commit is: by its prefix, by where all its changes lie, by its words."""
    prefix = re.match(r"(?P<type>[A-Za-z]+)(\([^)]*\))?(?P<mark>!?):\s", commit.subject)
    if commit.is_breaking or (prefix and prefix["mark"]):
        return "breaking"
    if prefix and prefix["type"].lower() in PREFIXES:
        return PREFIXES[prefix["type"].lower()]
    for kind, pattern in PLACES:
        if commit.paths and all(re.search(pattern, path) for path in commit.paths):
            return kind
    for kind, pattern in WORDS:
        if re.search(pattern, commit.subject, re.IGNORECASE):
            return kind
    return "other"


def draft_section(kind: str, commits: list[Commit]) -> Section:
    """Write a line for each commit; commits that say the same share one."""
    by_text: dict[str, list[Commit]] = {}
    for commit in commits:
        by_text.setdefault(describe(commit), []).append(commit)
    weighed = sorted(by_text.items(), key=lambda item: -max(len(c.paths) for c in item[1]))
    lines = [f"{text} ({', '.join(c.sha[:7] for c in same[:3])})" for text, same in weighed]
    return Section(kind=kind, lines=lines)


def describe(commit: Commit) -> str:
    """Say in a line what a commit does, without its prefix; a scope comes first."""
    prefix = re.match(r"[A-Za-z]+(\((?P<scope>[^)]*)\))?!?:\s+(?P<rest>.*)", commit.subject)
    text = prefix["rest"] if prefix and prefix["rest"] else commit.subject
    text = re.sub(r"\s*\(#\d+\)$", "", text).strip().rstrip(".") or "(no subject)"
    scope = f"**{prefix['scope']}**: " if prefix and prefix["scope"] else ""
    return scope + text[0].upper() + text[1:]


def count(commits: list[Commit]) -> Statistics:
    """Count, at the second attempt: the first fails on purpose, as a service that is just starting would."""
    if current_task().attempt == 1:
        raise ConnectionError(
            "the statistics are not there yet: this first attempt fails on purpose"
        )
    authors = Counter(commit.author for commit in commits)
    places = Counter(path.partition("/")[0] for commit in commits for path in commit.paths)
    days = {commit.date[:10] for commit in commits}
    return Statistics(
        commits=len(commits),
        authors=[author for author, _ in authors.most_common(10)],
        days=len(days),
        busiest=[place for place, _ in places.most_common(3)],
    )


def compose(
    history: History, statistics: Statistics, sections: list[Section], round_number: int, limit: int
) -> str:
    """Put the notes together; each round has fewer lines to a section, and the tenth is cut."""
    most = [1_000, 40, 25, 15, 10, 6, 4, 2, 1, 1][min(round_number, 9)]
    text = "\n".join(
        [
            f"# {history.name} {history.head or ''}".rstrip(),
            "",
            introduce(history, statistics),
            *(line for section in sections for line in compose_section(section, most)),
            "",
        ]
    )
    if round_number >= 9 and len(text) > limit:
        text = text[: limit - 2].rsplit("\n", 1)[0] + "\n…"
    print(f"round {round_number + 1}: {len(text)} characters, {limit} allowed")  # noqa: T201 - what a task prints is shown as it runs
    return text


def introduce(history: History, statistics: Statistics) -> str:
    """Say in a paragraph what the notes are about."""
    since = f" since {history.since}" if history.since else ""
    if not history.commits:
        return f"Nothing has changed{since}."
    shown = ", ".join(statistics.authors[:5])
    others = len(statistics.authors) - 5
    by = shown + (f" and {others} more" if others > 0 else "")
    busiest = f", mostly in {', '.join(statistics.busiest)}" if statistics.busiest else ""
    older = f" {history.left_out} older ones are left out." if history.left_out else ""
    return (
        f"{plural(statistics.commits, 'commit')}{since} on {plural(statistics.days, 'day')} "
        f"by {by}{busiest}.{older}"
    )


def compose_section(section: Section, most: int) -> list[str]:
    """Return a section's lines, `most` of them and a word about the others."""
    shown = [f"- {line}" for line in section.lines[:most]]
    hidden = len(section.lines) - len(shown)
    return [
        "",
        f"## {TITLES[section.kind]}",
        "",
        *shown,
        *([f"- … and {hidden} more"] if hidden else []),
    ]


def plural(number: int, word: str) -> str:
    """Say how many."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def head_of(draft: str) -> str:
    """Return what a person reads before deciding."""
    lines = draft.splitlines()
    more = len(lines) - HEAD_LINES
    return "\n".join([*lines[:HEAD_LINES], *([f"… ({more} more lines)"] if more > 0 else [])])


def write(draft: str, output: str, history: History) -> Published:
    """Write the notes in one go: whoever reads the file sees all of it or what was there before."""
    path = (current_task().root_dir / output).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(draft)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sections = draft.count("\n## ")
    summary = f"{plural(len(history.commits), 'commit')} of {history.name} in {plural(sections, 'section')}"
    return Published(path=str(path), summary=summary, chars=len(draft))

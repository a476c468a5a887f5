"""Commands in a jail: a program started by a tool sees the root and a read-only system, and dies with its attempt.

`jailer` is a small process beside each child, with one thread and a handful of modules, because a child with its threads
must not fork. `jail`, `cgroups`, `seccomp`, `init` and `syscalls` run in it and import nothing but the standard library.
"""

"""Where the `resprune` command starts: it listens to signals while the rest is imported."""

import sys

from resprune_jax.experiments import stopping


def main() -> int:
    """Run the command line of this process.

    Returns:
        The exit status, see `cli.main`.
    """
    with stopping.listening(for_good=True):
        try:
            try:
                from resprune_jax.experiments import cli
            except ImportError as error:
                if stopping.asked():
                    raise
                return _without_commands(error, sys.argv[1:])
            return cli.main()
        except KeyboardInterrupt:
            status = stopping.status()
        except Exception:
            if not stopping.asked():
                raise
            status = stopping.status()  # the import that was interrupted said something else
        print("resprune: stopped", file=sys.stderr)
        return status


def _without_commands(error: ImportError, words: list[str]) -> int:
    """What is left where a package that every command needs cannot be imported."""
    if words[:1] == ["doctor"]:
        from resprune_jax.experiments.doctor import command

        return command.bare(words[1:])
    print(f"resprune: the commands cannot be imported ({error}): run resprune doctor",
          file=sys.stderr)  # fmt: skip
    return 1

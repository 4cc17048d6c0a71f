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
            from resprune_jax.experiments import cli

            return cli.main()
        except KeyboardInterrupt:
            status = stopping.status()
        except Exception:
            if not stopping.asked():
                raise
            status = stopping.status()  # the import that was interrupted said something else
        print("resprune: stopped", file=sys.stderr)
        return status

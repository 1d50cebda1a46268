"""`minigrad study`, as on the command line; files that import this are skipped where its packages are not installed."""

import argparse

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("jinja2")
pytest.importorskip("sklearn")

from minigrad.spectral.study import command


def study(*argv):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(a) for a in argv]))

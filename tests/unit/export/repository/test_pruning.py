"""`deepfake repository prune` removes old versions and never one that is served."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from repository_command import deepfake
from repository_crashes import add_version

from deepfake_export.repository.activation import activate
from deepfake_export.repository.pruning import prune
from deepfake_export.repository.staging import leftovers
from deepfake_preprocess.contract.model_dir import versions_of
from deepfake_preprocess.errors import OptionError, RepositoryError


def test_prune_keeps_the_newest_and_the_served_one(capsys, root):
    add_version(root, 0.8)
    activate(root, "tiny", 1)
    code, out, _ = deepfake(capsys, "prune", "tiny", "--keep", 1, "--dry-run", "-r", root)
    assert (code, versions_of(root / "tiny")) == (0, [1, 2, 3, 4])
    assert "Would remove version(s) 2, 3 of tiny" in out
    code, out, _ = deepfake(capsys, "prune", "tiny", "--keep", 1, "--yes", "-r", root, "--json")
    done = json.loads(out)
    assert (code, done["removed"], done["kept"], done["served"], done["done"]) == (0, [2, 3], [1, 4], [1], True)
    assert versions_of(root / "tiny") == [1, 4]
    assert leftovers(root, "tiny") == []
    assert deepfake(capsys, "verify", "-r", root)[0] == 0
    out = deepfake(capsys, "prune", "tiny", "--keep", 1, "--yes", "-r", root)[1]
    assert out == "Nothing to remove: of tiny, version(s) 4 stay by --keep 1, and 1 because it is served.\n"
    out = deepfake(capsys, "prune", "tiny", "--keep", 3, "--yes", "-r", root)[1]
    assert out == "Nothing to remove: tiny has 2 version(s) (1, 4), and --keep 3 lets up to 3 stay.\n"


def test_without_a_terminal_prune_wants_a_yes(capsys, root, monkeypatch):
    with Path(os.devnull).open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code, _, err = deepfake(capsys, "prune", "tiny", "--keep", 1, "-r", root)
    assert (code, "--yes" in err) == (2, True)
    assert versions_of(root / "tiny") == [1, 2, 3]


def test_prune_asks_on_a_terminal(capsys, root, monkeypatch):
    for answer, left in (("n", [1, 2, 3]), ("y", [3])):
        controller, terminal = os.openpty()
        os.write(controller, f"{answer}\n".encode())
        with os.fdopen(terminal) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            code, _, _ = deepfake(capsys, "prune", "tiny", "--keep", 1, "-r", root)
        os.close(controller)
        assert (code, versions_of(root / "tiny")) == (0, left)


def test_prune_does_not_guess_what_is_served(root):
    (root / "tiny/config.pbtxt").write_text("garbage: {")
    with pytest.raises(RepositoryError, match=r"config\.pbtxt"):
        prune(root, "tiny", keep=1)
    assert versions_of(root / "tiny") == [1, 2, 3]
    with pytest.raises(OptionError, match="keep is 0"):
        prune(root, "tiny", keep=0)

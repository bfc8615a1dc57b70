"""The command line where PyTorch is not installed: ``python -c WITHOUT_TORCH evaluate ...``."""

WITHOUT_TORCH = """
import sys

class NotInstalled:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("not installed", name=name)

sys.meta_path.insert(0, NotInstalled)
from deepfake_client.cli.main import main
main(sys.argv[1:])
"""

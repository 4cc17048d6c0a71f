"""Names the packages; all else that setuptools is told stands in pyproject.toml.

models/ and experiments/ lie at the top of the tree and are imported as resprune_jax.models and
resprune_jax.experiments. Inside resprune_jax/ committed symlinks lead to them, but neither a source
distribution nor every checkout has symlinks: the names are made from the folders themselves.
"""

from setuptools import find_namespace_packages, setup

FOLDERS = {
    "resprune_jax": "resprune_jax",
    "resprune_jax.models": "models",
    "resprune_jax.experiments": "experiments",
}

packages = set(FOLDERS)
for name, folder in FOLDERS.items():
    # Namespace packages, since folders of data have no __init__.py.
    packages |= {f"{name}.{inside}" for inside in find_namespace_packages(folder)}

setup(
    package_dir=FOLDERS,
    packages=sorted(each for each in packages if not each.endswith("__pycache__")),
)
